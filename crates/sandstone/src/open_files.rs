//! How many files this process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};
use sandstone_core::CONNECTIONS_MAX;

/// As many as a full server may need: one for each client's connection and as many again for
/// agents, exposed servers and SSH; and the same for egress, which takes half of the limit.
const WANTED: u64 = 4 * CONNECTIONS_MAX as u64;

/// Raises the soft limit of open files to the hard one, as getrlimit(2) names them: the usual soft
/// limit, 1024, is for programs that use select(2). Sandboxes are not concerned: each gets its own
/// from the hard limit.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    if let Some(warning) = shortage(getrlimit(Resource::Nofile).current) {
        tracing::warn!("{warning}");
    }
}

/// What is wrong with this limit (none is infinity), if anything.
fn shortage(limit: Option<u64>) -> Option<String> {
    let limit = limit.filter(|limit| *limit < WANTED)?;
    Some(format!(
        "this process may have {limit} files open, too few for {CONNECTIONS_MAX} connections of \
         clients: raise the hard limit to {WANTED} (LimitNOFILE= of systemd, `ulimit -Hn`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum.map(|most| most.min(512)).or(Some(512));
        setrlimit(Resource::Nofile, limit).unwrap();
        raise_limit();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, limit.maximum);
        assert_eq!(raised.maximum, limit.maximum);
    }

    #[test]
    fn too_small_a_limit_is_named() {
        let warning = shortage(Some(4096)).unwrap();
        assert!(
            warning.contains("4096 files") && warning.contains("16384"),
            "{warning}"
        );
        assert_eq!(shortage(Some(WANTED)), None);
        assert_eq!(shortage(None), None);
    }
}
