//! What the daemon does to need little memory: a node's services need it more.
//!
//! Blocks of lines go from thread to thread. Left alone, the C library gives every thread a heap of its own and keeps in each what went through it
//! once. And the program is large (it is every program of the cluster): what a start reads of it, command lines, documents and keys, is
//! never looked at again.

/// Settings of the C library's allocator; before there are threads.
pub(crate) fn keep_heaps_small() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)] // Neither nix nor the standard library has this call; it takes plain numbers.
    // SAFETY: it changes settings of the allocator and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // What is larger is returned when it is freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 10);
    }
}

/// Gives back what the start has read of the program. What is needed after all comes again from the page cache, a fault per 64 KiB.
pub(crate) fn forget_the_start() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Some(program) = std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned)) else { return };
    for (from, to) in maps.lines().filter_map(|line| constant_range(line, &program)) {
        #[allow(unsafe_code)] // nix has it behind a feature for one call.
        // SAFETY: a mapping of a file that nobody can write through: what is dropped of it is read again, the same.
        unsafe {
            libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED);
        }
    }
}

/// The addresses of a mapping of the program that cannot be written: code, and constants that need no relocation.
fn constant_range(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    // Behind the code is what relocations were written into before it was made constant: that exists nowhere else.
    let constant = rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|digit| digit == b'0'));
    if !constant || fields.nth(2)? != program {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_constant_parts_of_the_program_are_given_back() {
        let found = |rights: &str, offset: &str, path: &str| {
            constant_range(
                &format!("55d0a000-55d0c000 {rights} {offset} fe:00 123        {path}"),
                "/usr/bin/eccluster",
            )
        };
        let program = "/usr/bin/eccluster";
        assert_eq!(found("r-xp", "00a92000", program), Some((0x55d0_a000, 0x55d0_c000)));
        assert!(found("r--p", "00000000", program).is_some());
        for (rights, offset, path) in [
            ("rw-p", "02f59000", program),
            ("r--p", "02e3a000", program),
            ("r-xp", "00028000", "/lib/libc.so.6"),
            ("r--p", "00000000", ""),
        ] {
            assert_eq!(found(rights, offset, path), None, "{rights} {offset} {path}");
        }
    }

    #[test]
    fn the_program_goes_on() {
        forget_the_start();
        assert_eq!("still here".len(), 10);
    }
}
