//! Files into a guest and out of it.

use std::time::Duration;

use super::{CHUNK, Door, Ending, Output, short};
use crate::digest::Digest;
use crate::error::{Failure, Kind};

/// `text` as one word of a shell.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl Door {
    /// Writes `bytes` to `path`, making its folder, with mode `mode`; nothing is there until all of it is and its digest is right.
    /// Each 256 KiB may take `limit`.
    ///
    /// # Errors
    /// [`Kind::Test`] when the guest cannot.
    pub fn put(&self, bytes: &[u8], path: &str, mode: u32, limit: Duration) -> Result<(), Failure> {
        let place = quote(path);
        let part = quote(&format!("{path}.kiln-part"));
        self.done(&format!("mkdir -p -- \"$(dirname -- {place})\" && : >{part}"), &[], path, limit)?;
        for chunk in bytes.chunks(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
            self.done(&format!("cat >>{part}"), chunk, path, limit)?;
        }
        let sum = Digest::of(bytes);
        let command = format!(
            "sum=$(sha256sum <{part}) && [ \"${{sum%% *}}\" = {sum} ] || {{ echo 'the bytes arrived changed' >&2; exit 1; }}\n\
             chmod {mode:o} -- {part} && mv -fT -- {part} {place}"
        );
        self.done(&command, &[], path, limit).map(drop)
    }

    /// The bytes of the regular file `path`, checked by its digest. Each 256 KiB may take `limit`. Files that change and those of
    /// /proc and /sys are for `cat` and [`Door::run`].
    ///
    /// # Errors
    /// [`Kind::Test`] when there is no such file or it changed meanwhile.
    pub fn get(&self, path: &str, limit: Duration) -> Result<Vec<u8>, Failure> {
        let place = quote(path);
        let sum = self.done(&format!("sha256sum <{place}"), &[], path, limit)?.text();
        let mut bytes = Vec::new();
        loop {
            let command = format!(
                "dd if={place} iflag=skip_bytes,count_bytes skip={} count={CHUNK} bs=65536 status=none",
                bytes.len()
            );
            let mut part = self.done(&command, &[], path, limit)?.stdout;
            if part.is_empty() {
                break;
            }
            bytes.append(&mut part);
        }
        if sum.split(' ').next() != Some(&Digest::of(&bytes).to_string()) {
            let what = format!("{path} of {} changed while it was fetched", self.port.name());
            return Err(Failure::new(Kind::Test, what).hint("copy it in the guest first, and fetch the copy"));
        }
        Ok(bytes)
    }

    fn done(&self, command: &str, stdin: &[u8], path: &str, limit: Duration) -> Result<Output, Failure> {
        let output = self.run_with(command, stdin, limit)?;
        if output.status == 0 && output.ending == Ending::Done {
            return Ok(output);
        }
        let what = format!("{} cannot read or write {path}: `{}`", self.port.name(), short(command));
        Err(Failure::new(Kind::Test, what).hint(output.describe()))
    }
}
