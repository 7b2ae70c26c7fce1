//! Disks that lose power as real ones do: kiln itself serves them to QEMU.
//!
//! A drive with a volatile cache says a write is done when it is not: only a flush, or a write with "force unit access", puts it where it
//! outlives a power cut. Killing QEMU proves nothing of that, since what it wrote stays in the host's page cache. So the
//! disks of a test machine are [`Export`]s, NBD servers on unix sockets that know what was flushed:
//!
//! ```text
//! QEMU ── unix socket ── nbd        the protocol: one thread per connection
//!                         └ faults  errors, delays and flipped bytes on demand
//!                         └ layers  image (never written) <- overlay, and what undoes everything unflushed
//! ```
//!
//! The order of things at a power cut: QEMU is killed, then [`Export::power_cut`] throws a seeded part of the unflushed blocks
//! away, then QEMU is started again and connects anew. A reset or a reboot of the guest keeps the cache, as it does on hardware.
//!
//! What was written lies in files without a name (`O_TMPFILE`) in the run folder: it is gone with the export, however kiln ends.

mod faults;
mod layers;
mod nbd;

use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;

pub use self::faults::Fault;
use self::faults::Faults;
use self::layers::Layers;
use crate::error::{Failure, Kind};

/// What a disk is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The run folder: the socket is made there, and what the guest writes takes its space.
    pub folder: PathBuf,
    /// The name of the disk, and of its socket `NAME.sock`.
    pub name: String,
    /// The raw image at the disk's beginning, opened read-only; `None` for an empty disk.
    pub image: Option<PathBuf>,
    /// The size in bytes the guest sees; `None` for the image's own. What the image does not fill reads zero.
    pub size: Option<u64>,
    /// The smallest unit of reads and writes in bytes: 512, or 4096 on 4Kn disks.
    pub block_size: u32,
    /// Whether a power cut may tear a block of 4 KiB into its sectors of 512 bytes; never done on 4Kn disks.
    pub torn: bool,
}

impl Options {
    /// A disk that begins with the raw image at `image`, as large as it until [`Options::size`] is set.
    pub fn of_image(folder: &Path, name: &str, image: &Path) -> Self {
        let image = Some(image.to_owned());
        Options {
            folder: folder.to_owned(),
            name: name.to_owned(),
            image,
            size: None,
            block_size: 512,
            torn: true,
        }
    }

    /// An empty disk of `size` bytes.
    pub fn empty(folder: &Path, name: &str, size: u64) -> Self {
        Options { image: None, size: Some(size), ..Options::of_image(folder, name, Path::new("")) }
    }
}

/// What a power cut did to the unflushed blocks of 4 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cut {
    /// As before the write that was not flushed.
    pub dropped: u64,
    /// As written.
    pub kept: u64,
    /// Some sectors as before, some as written.
    pub torn: u64,
}

/// What a disk was asked for since it was served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Trim and write-zeroes requests.
    pub trims: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written, those of trim and write-zeroes not among them.
    pub bytes_written: u64,
}

/// A served disk. Dropping it ends its threads, closes its connections and removes its socket.
#[derive(Debug)]
pub struct Export {
    socket: PathBuf,
    size: u64,
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the threads of an export share.
#[derive(Debug)]
struct Shared {
    name: String,
    block_size: u32,
    size: u64,
    layers: Mutex<Layers>,
    faults: Mutex<Faults>,
    count: Count,
    /// The first error of the host's own files.
    trouble: Mutex<Option<String>>,
    stop: AtomicBool,
    /// Held while connections are ended, so that none comes up in between.
    connections: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Ends a delay early: see [`Fault::Latency`].
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Count {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    trims: AtomicU64,
    errors: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Export {
    /// Makes the disk's files and listens on its socket.
    ///
    /// # Errors
    /// [`Kind::Input`] for a size that cannot be, an image that cannot be read or a socket path that is too long; [`Kind::Store`] when
    /// the run folder cannot be written.
    pub fn serve(options: Options) -> Result<Self, Failure> {
        let refuse = |what: String| Failure::new(Kind::Input, format!("disk {}: {what}", options.name));
        if options.block_size != 512 && options.block_size != 4096 {
            return Err(refuse(format!("a block size of {} bytes: give 512 or 4096", options.block_size)));
        }
        let image = options.image.as_deref().map(layers::Image::open).transpose();
        let image = image.map_err(|error| refuse("its image cannot be read".to_owned()).because(error))?;
        let bytes = image.as_ref().map_or(0, layers::Image::len);
        let size = options.size.unwrap_or(bytes);
        if size < bytes {
            return Err(refuse(format!("an image of {bytes} bytes does not fit in {size}"))
                .hint("give the machine a larger disk"));
        }
        if size == 0 || !size.is_multiple_of(u64::from(options.block_size)) || size > layers::LARGEST {
            return Err(refuse(format!(
                "{size} bytes: a size must be a multiple of {} up to 16 TiB",
                options.block_size
            )));
        }
        let socket = options.folder.join(format!("{}.sock", options.name));
        super::check_socket(&socket)?;
        let cannot = |error| {
            let what = format!("disk {}: cannot work in {}", options.name, options.folder.display());
            Failure::new(Kind::Store, what).because(error)
        };
        let torn = options.torn && options.block_size == 512;
        let layers = Layers::new(&options.folder, image, size, torn).map_err(cannot)?;
        let listener = Arc::new(UnixListener::bind(&socket).map_err(cannot)?);
        let shared = Arc::new(Shared {
            name: options.name.clone(),
            block_size: options.block_size,
            size,
            layers: Mutex::new(layers),
            faults: Mutex::new(Faults::default()),
            count: Count::default(),
            trouble: Mutex::new(None),
            stop: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
        });
        let theirs = (Arc::clone(&listener), Arc::clone(&shared));
        let acceptor = std::thread::Builder::new()
            .name(format!("disk {}", options.name))
            .spawn(move || accept(&theirs.0, &theirs.1))
            .map_err(cannot)?;
        Ok(Export { socket, size, listener, shared, acceptor: Some(acceptor) })
    }

    /// The socket QEMU connects to; the export's name on it is empty.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The size in bytes the guest sees.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The power goes: what is still connected is cut off, and of the blocks written but not flushed a part given by `seed` is lost.
    /// Call it when QEMU is dead. Each block has its own fate whatever the order of the writes; see [`layers`].
    ///
    /// # Errors
    /// [`Kind::Store`] when the host's files fail.
    pub fn power_cut(&self, seed: u64) -> Result<Cut, Failure> {
        self.alone(|layers| layers.cut(seed))
    }

    /// An orderly end: what is still connected is cut off, and all that was written is kept.
    ///
    /// # Errors
    /// [`Kind::Store`] when the host's files fail.
    pub fn clean(&self) -> Result<(), Failure> {
        self.alone(Layers::flush)
    }

    /// Damages one byte of what the guest reads, until it is written again. Neither the image nor the disk's files change.
    pub fn flip(&self, offset: u64, xor: u8) {
        lock(&self.shared.faults).flip(offset, xor);
    }

    /// Makes requests fail from now on; several faults may be in force.
    pub fn inject(&self, fault: Fault) {
        lock(&self.shared.faults).add(fault);
    }

    /// Takes back what [`Export::inject`] did.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// What the disk was asked for so far.
    pub fn counters(&self) -> Counters {
        self.shared.count.snapshot()
    }

    /// How many blocks of 4 KiB a power cut could take now.
    pub fn unflushed(&self) -> u64 {
        lock(&self.shared.layers).unflushed()
    }

    /// The first error of the host's own files (a full disk, say): what the guest complains of is then no fault of its own.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    /// Ends all connections, then does `work` before a new one can come.
    fn alone<T>(&self, work: impl FnOnce(&mut Layers) -> std::io::Result<T>) -> Result<T, Failure> {
        let mut connections = lock(&self.shared.connections);
        end(&mut connections);
        let done = work(&mut lock(&self.shared.layers));
        done.map_err(|error| {
            Failure::new(Kind::Store, format!("disk {}: its files failed", self.shared.name)).because(error)
        })
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor: accept(2) on a listening socket that was shut down gives EINVAL.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        end(&mut lock(&self.shared.connections));
        // A run folder that is gone already took the socket with it.
        let _ = fs::remove_file(&self.socket);
    }
}

fn end(connections: &mut Vec<Connection>) {
    for connection in connections.drain(..) {
        connection.ended.store(true, Ordering::SeqCst);
        let _ = connection.stream.shutdown(Shutdown::Both);
        let _ = connection.thread.join();
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !shared.stop.load(Ordering::SeqCst) {
                    tracing::warn!(disk = shared.name, %error, "accept");
                    // Out of file descriptors, say: they come back when a connection ends.
                    std::thread::sleep(Duration::from_millis(50));
                }
                continue;
            }
        };
        let mut connections = lock(&shared.connections);
        connections.retain(|connection| !connection.thread.is_finished());
        let ended = Arc::new(AtomicBool::new(false));
        let theirs = (Arc::clone(shared), Arc::clone(&ended));
        let started = stream.try_clone().and_then(|mut theirs_stream| {
            std::thread::Builder::new().name(format!("disk {}", shared.name)).spawn(move || {
                let client = Client { shared: &theirs.0, ended: &theirs.1 };
                if let Err(error) = nbd::serve(&mut theirs_stream, &client) {
                    tracing::debug!(disk = theirs.0.name, %error, "connection");
                }
                // The kept half of the socket would hold it open for the client.
                let _ = theirs_stream.shutdown(Shutdown::Both);
            })
        });
        match started {
            Ok(thread) => connections.push(Connection { stream, ended, thread }),
            Err(error) => tracing::warn!(disk = shared.name, %error, "connection refused"),
        }
    }
}

/// The disk as one connection sees it: faults first, then the layers.
#[derive(Debug)]
struct Client<'e> {
    shared: &'e Shared,
    ended: &'e AtomicBool,
}

/// Why a request failed, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// `EIO`
    Io,
    /// `ENOSPC`
    NoSpace,
}

impl nbd::Disk for Client<'_> {
    fn size(&self) -> u64 {
        self.shared.size
    }

    fn block_size(&self) -> u32 {
        self.shared.block_size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let range = offset..offset + into.len() as u64;
        self.shared.count.add(&self.shared.count.reads, 1);
        self.begin(|faults| faults.read(&range))?;
        self.done(lock(&self.shared.layers).read(offset, into))?;
        lock(&self.shared.faults).spoil(offset, into);
        self.shared.count.add(&self.shared.count.bytes_read, into.len() as u64);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Refusal> {
        let range = offset..offset + data.len() as u64;
        self.shared.count.add(&self.shared.count.writes, 1);
        self.begin(|faults| faults.write(&range))?;
        self.done(lock(&self.shared.layers).write(offset, data, fua))?;
        lock(&self.shared.faults).written(&range);
        self.shared.count.add(&self.shared.count.bytes_written, data.len() as u64);
        Ok(())
    }

    fn zero(&self, range: Range<u64>, fua: bool) -> Result<(), Refusal> {
        self.shared.count.add(&self.shared.count.trims, 1);
        self.begin(|faults| faults.write(&range))?;
        self.done(lock(&self.shared.layers).zero(range.clone(), fua))?;
        lock(&self.shared.faults).written(&range);
        Ok(())
    }

    fn flush(&self) -> Result<(), Refusal> {
        self.shared.count.add(&self.shared.count.flushes, 1);
        self.begin(|_| Ok(()))?;
        self.done(lock(&self.shared.layers).flush())
    }
}

impl Client<'_> {
    /// Waits as long as the disk is slow, then asks the faults.
    fn begin(&self, verdict: impl FnOnce(&Faults) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let delay = lock(&self.shared.faults).delay();
        let end = Instant::now() + delay;
        while !self.ended.load(Ordering::SeqCst) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        let verdict = verdict(&lock(&self.shared.faults));
        verdict.inspect_err(|_| self.shared.count.add(&self.shared.count.errors, 1))
    }

    fn done(&self, result: std::io::Result<()>) -> Result<(), Refusal> {
        result.map_err(|error| {
            self.shared.count.add(&self.shared.count.errors, 1);
            tracing::warn!(disk = self.shared.name, %error, "files");
            lock(&self.shared.trouble).get_or_insert_with(|| error.to_string());
            let full = error.kind() == std::io::ErrorKind::StorageFull;
            if full { Refusal::NoSpace } else { Refusal::Io }
        })
    }
}

impl Count {
    fn add(&self, counter: &AtomicU64, much: u64) {
        counter.fetch_add(much, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            reads: of(&self.reads),
            writes: of(&self.writes),
            flushes: of(&self.flushes),
            trims: of(&self.trims),
            errors: of(&self.errors),
            bytes_read: of(&self.bytes_read),
            bytes_written: of(&self.bytes_written),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
