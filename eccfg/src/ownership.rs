//! Who owns a working copy's files: as it is written on a command line or in `boot.toml`, and as the system numbers it.
//!
//! The names are looked up once, when the working copy is made; from then on it keeps the numbers.

use nix::unistd::{Group, User};
use repos::worktree::Ownership;

/// An owner, a group, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Both halves of an ownership together.
pub fn of(owner: Option<Owner>, umask: u32) -> Ownership {
    let Owner { uid, gid } = owner.unwrap_or_default();
    Ownership { uid, gid, umask }
}

/// Reads `user`, `user:group` or `:group`; numbers stand for themselves.
pub fn parse_owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    if user.is_empty() && group.is_empty() {
        return Err("USER, USER:GROUP or :GROUP is expected".into());
    }
    let uid = (!user.is_empty()).then(|| number_of_user(user)).transpose()?;
    let gid = (!group.is_empty()).then(|| number_of_group(group)).transpose()?;
    Ok(Owner { uid, gid })
}

/// Reads octal permissions to take away, such as `027`.
pub fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        // The owner has to be able to read and to update what is written.
        Ok(umask) if umask & !0o077 == 0 => Ok(umask),
        _ => Err("octal digits for group and others are expected, such as 027".into()),
    }
}

fn number_of_user(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user {name:?} on this machine")),
        Err(cause) => Err(format!("the user {name:?} cannot be looked up: {cause}")),
    }
}

fn number_of_group(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group {name:?} on this machine")),
        Err(cause) => Err(format!("the group {name:?} cannot be looked up: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(parse_owner("root"), Ok(Owner { uid: Some(0), gid: None }));
        assert_eq!(parse_owner("12:34"), Ok(Owner { uid: Some(12), gid: Some(34) }));
        assert_eq!(parse_owner(":0"), Ok(Owner { uid: None, gid: Some(0) }));
        for (text, word) in
            [("", "expected"), (":", "expected"), ("no-such-user", "no user"), ("0:no-such-group", "no group")]
        {
            assert!(parse_owner(text).is_err_and(|error| error.contains(word)), "{text:?}");
        }
    }

    #[test]
    fn umasks_leave_the_owner_alone() {
        assert_eq!((parse_umask("027"), parse_umask("0")), (Ok(0o027), Ok(0)));
        for text in ["", "8", "700", "0x7", "rwx"] {
            assert!(parse_umask(text).is_err(), "{text:?}");
        }
    }
}
