//! "Did you mean …": the known name nearest to one that was not understood.

/// The nearest of the known names, when it is near enough to be a slip of the hand.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance is quadratic in the length; a name this long is not a misspelt key.
    const LONGEST: usize = 64;
    if written.len() > LONGEST {
        return None;
    }
    let folded = fold(written);
    let allowed = (folded.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|name| name.len() <= LONGEST)
        .map(|name| (distance(&folded, &fold(name)), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// A hint for an unknown key: the nearest known one, else all of them when they are few.
pub fn for_unknown(written: &str, known: &[&str]) -> Option<String> {
    if let Some(name) = nearest(written, known.iter().copied()) {
        return Some(format!("did you mean \"{name}\"?"));
    }
    match known {
        [] => None,
        _ if known.len() > 24 => None,
        _ => Some(format!("known here: {}", known.join(", "))),
    }
}

/// `deadAfter`, `dead-after` and `dead_after` are the same slip.
fn fold(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | ' ' => {}
            c => folded.extend(c.to_lowercase()),
        }
    }
    folded
}

/// Edits between two words; swapping two neighbours counts as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut cost = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            cost[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = cost[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replace.min(cost[(i - 1) * width + j] + 1).min(cost[i * width + j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(cost[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    cost[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_nothing_else() {
        let known = ["dead_after", "heartbeat", "no_quorum", "plumb", "vip"];
        for (written, expected) in [
            ("dead-after", Some("dead_after")),
            ("deadafter", Some("dead_after")),
            ("haertbeat", Some("heartbeat")),
            ("noquorum", Some("no_quorum")),
            ("vips", Some("vip")),
            ("pulmb", Some("plumb")),
            ("x", None),
            ("interface", None),
        ] {
            assert_eq!(nearest(written, known), expected, "{written}");
        }
        assert_eq!(nearest(&"v".repeat(1 << 20), known), None);
    }
}
