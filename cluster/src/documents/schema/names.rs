//! Names: of nodes, groups, subclusters and directories.

/// Directories of a working copy that are not a node's or a group's.
pub const RESERVED_DIRECTORIES: [&str; 3] = ["default", "global", "running"];

/// Longest name of a node, group or subcluster: that of a DNS label.
pub const MAX_NAME: usize = 63;

/// Why a name cannot be used, or none when it can. Node and group names are directories of every working copy, part of
/// certificates and of file names.
pub fn refuse_node_name(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > MAX_NAME {
        return Some(format!("a name has 1 to {MAX_NAME} characters"));
    }
    if !name.chars().all(good) || !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return Some("a name starts with a lower-case letter or digit and goes on with those and - . _".into());
    }
    if !is_path_component(name) || name.ends_with(".git") {
        return Some("this name cannot be a directory".into());
    }
    if RESERVED_DIRECTORIES.contains(&name) {
        return Some(format!("\"{name}\" is a directory with a meaning of its own"));
    }
    None
}

/// Why a subcluster cannot have this name: subclusters are single lower-case words.
pub fn refuse_subcluster_name(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if name.is_empty()
        || name.len() > MAX_NAME
        || !name.chars().all(good)
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
    {
        return Some("a subcluster's name is a single lower-case word".into());
    }
    if name == "global" {
        return Some("\"global\" is the repository that all subclusters share".into());
    }
    None
}

/// Why a log, series, check or service cannot have this name. It becomes part of file names and commands.
pub fn refuse_item_name(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) || !name.starts_with(first) {
        return Some(format!(
            "a name here has 1 to {MAX_NAME} letters, digits and - _ . and starts with none of - and ."
        ));
    }
    None
}

/// True for what may stand between two slashes of a path inside a working copy.
pub fn is_path_component(component: &str) -> bool {
    let git = component.len() == 4 && component.eq_ignore_ascii_case(".git");
    !matches!(component, "" | "." | "..") && !git && !component.contains(['/', '\0', '\\'])
}
