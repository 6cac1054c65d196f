//! The agent's executable, carried inside this binary and written to the data directory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

static AGENT: &[u8] = include_bytes!(env!("SANDSTONE_AGENT"));

/// Writes the agent to `<directory>/agent-<hash>`, unless it is there, and returns its path.
///
/// The name carries the content's hash, so running sandboxes keep theirs and a half-written file
/// is never taken for a whole one.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn install(directory: &Path) -> io::Result<PathBuf> {
    let hash = Sha256::digest(AGENT);
    let name: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = directory.join(format!("agent-{name}"));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(directory)?;
    let temporary = directory.join(format!("agent-{name}.new"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(AGENT)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, &path)?;
    Ok(path)
}
