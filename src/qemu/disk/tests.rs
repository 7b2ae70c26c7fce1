use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The client's side of the protocol, as the specification has it.
struct Client {
    stream: UnixStream,
    cookie: u64,
}

impl Client {
    /// Connects and says the client's flags.
    fn greet(export: &Export) -> Self {
        let stream = UnixStream::connect(export.socket()).unwrap();
        // A server that does not answer fails the test and does not hang it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut client = Client { stream, cookie: 0 };
        assert_eq!(&client.take(16)[..], b"NBDMAGICIHAVEOPT");
        assert_eq!(client.take(2), [0, 3]);
        client.send(&3_u32.to_be_bytes());
        client
    }

    fn connect(export: &Export) -> Self {
        let mut client = Client::greet(export);
        let replies = client.option(7, &[0, 0, 0, 0, 0, 1, 0, 3]);
        assert_eq!(number(&replies[0].1[2..10]), export.size());
        assert_eq!(replies[0].1[10..], [0, 0b110_1101]);
        assert_eq!(replies[1].1[..2], [0, 3]);
        assert_eq!(replies.last().unwrap().0, 1);
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Sends an option; its replies up to the final one: kind and data.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&[b"IHAVEOPT", &option.to_be_bytes()[..], &length.to_be_bytes(), data].concat());
        let mut replies = Vec::new();
        loop {
            let head = self.take(20);
            assert_eq!(number(&head[..8]), 0x0003_e889_0455_65a9);
            assert_eq!(number(&head[8..12]), u64::from(option));
            let kind = u32::try_from(number(&head[12..16])).unwrap();
            let data = self.take(usize::try_from(number(&head[16..])).unwrap());
            replies.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
        self.cookie += 1;
        let numbers = [flags.to_be_bytes(), command.to_be_bytes()].concat();
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &numbers, &self.cookie.to_be_bytes()].concat();
        self.send(&[&head[..], &offset.to_be_bytes(), &length.to_be_bytes(), data].concat());
        let reply = self.take(16);
        assert_eq!(number(&reply[..4]), 0x6744_6698);
        assert_eq!(number(&reply[8..]), self.cookie);
        u32::try_from(number(&reply[4..8])).unwrap()
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        match self.request(0, 0, offset, length, &[]) {
            0 => Ok(self.take(length as usize)),
            error => Err(error),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.request(0, 1, offset, u32::try_from(data.len()).unwrap(), data)
    }

    fn flush(&mut self) -> u32 {
        self.request(0, 3, 0, 0, &[])
    }

    fn sees_the_end(mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn empty() -> (tempfile::TempDir, Export) {
    let folder = tempfile::tempdir().unwrap();
    let export = Export::serve(Options::empty(folder.path(), "d", MIB)).unwrap();
    (folder, export)
}

/// A seed with which nothing unflushed survives.
fn takes_all() -> u64 {
    let (_folder, export) = empty();
    (0..1000)
        .find(|seed| {
            let mut client = Client::connect(&export);
            assert_eq!(client.write(0, &vec![1; 1 << 20]), 0);
            export.power_cut(*seed).unwrap().dropped == 256
        })
        .unwrap()
}

#[test]
fn negotiation_answers_every_option_as_specified() {
    let (_folder, export) = empty();
    let mut client = Client::greet(&export);
    assert_eq!(
        client.option(3, &[]),
        [(2, vec![0; 4]), (1, vec![])],
        "the list has one export without a name"
    );
    assert_eq!(client.option(8, &[])[0].0, 1 << 31 | 1, "structured replies are not there");
    assert_eq!(client.option(6, &[0, 0, 0, 1, b'x', 0, 0])[0].0, 1 << 31 | 6, "no such export");
    assert_eq!(client.option(6, &[0, 0, 0, 9, 0])[0].0, 1 << 31 | 3, "a name that is longer than the option");
    assert_eq!(client.option(6, &[0, 0, 0, 0, 0, 0]).last().unwrap().0, 1, "information and no more");
    assert_eq!(client.option(2, &[]), [(1, vec![])]);
    assert!(client.sees_the_end());

    let mut old = Client::greet(&export);
    old.send(&[b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 0][..]].concat());
    let about = old.take(10);
    assert_eq!(number(&about[..8]), MIB);
    assert_eq!(old.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn what_is_written_is_read_by_another_connection_and_counted() {
    let (_folder, export) = empty();
    let (mut one, mut two) = (Client::connect(&export), Client::connect(&export));
    assert_eq!(one.write(1000, b"hello"), 0);
    assert_eq!(two.read(998, 9).unwrap(), b"\0\0hello\0\0");
    assert_eq!(one.request(0, 6, 1000, 2, &[]), 0, "write zeroes");
    assert_eq!(one.request(0, 4, 4096, 8192, &[]), 0, "trim");
    assert_eq!(two.read(998, 9).unwrap(), b"\0\0\0\0llo\0\0");
    assert_eq!(one.flush(), 0);
    assert_eq!(
        export.counters(),
        Counters { reads: 2, writes: 1, flushes: 1, trims: 2, errors: 0, bytes_read: 18, bytes_written: 5 }
    );
}

#[test]
fn requests_that_cannot_be_are_refused_and_the_connection_lives_on() {
    let (_folder, export) = empty();
    let mut client = Client::connect(&export);
    const ENOSPC: u32 = 28;
    const EINVAL: u32 = 22;
    assert_eq!(client.read(MIB - 1, 2), Err(EINVAL));
    assert_eq!(client.read(u64::MAX, 512), Err(EINVAL));
    assert_eq!(client.write(MIB - 1, b"xy"), ENOSPC);
    assert_eq!(client.request(0, 6, MIB, 512, &[]), ENOSPC);
    assert_eq!(client.request(0, 4, u64::MAX - 5, u32::MAX, &[]), EINVAL);
    assert_eq!(client.request(0, 5, 0, 512, &[]), EINVAL, "a command that was not offered");
    assert_eq!(client.request(1 << 4, 6, 0, 512, &[]), EINVAL, "a flag that was not offered");
    assert_eq!(client.read(MIB - 2, 2).unwrap(), [0, 0]);
}

#[test]
fn a_client_that_breaks_the_protocol_is_cut_off_and_the_next_one_is_served() {
    let (_folder, export) = empty();
    let mut client = Client::greet(&export);
    client.send(b"GET / HTTP/1.1\r\n\r\n");
    assert!(client.sees_the_end());
    let mut client = Client::connect(&export);
    client.send(&[0; 28]);
    assert!(client.sees_the_end());
    let mut client = Client::connect(&export);
    // A write of 4 GiB: refused before a byte of it is read.
    client.send(&[&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1][..], &[0; 16], &[0xff; 4]].concat());
    assert!(client.sees_the_end());
    assert_eq!(Client::connect(&export).read(0, 3).unwrap(), [0; 3]);
}

#[test]
fn a_power_cut_ends_connections_takes_the_unflushed_and_leaves_the_flushed() {
    let (_folder, export) = empty();
    let seed = takes_all();
    let mut client = Client::connect(&export);
    assert_eq!(client.write(0, &[1; 4096]), 0);
    assert_eq!(client.flush(), 0);
    assert_eq!(client.write(4096, &[2; 4096]), 0);
    assert_eq!(client.request(1, 1, 8192, 4096, &[3; 4096]), 0, "force unit access");
    assert_eq!(export.unflushed(), 1);
    assert_eq!(export.power_cut(seed).unwrap(), Cut { dropped: 1, kept: 0, torn: 0 });
    assert!(client.sees_the_end());
    let mut client = Client::connect(&export);
    let found = client.read(0, 12288).unwrap();
    assert!(found[..4096].iter().all(|b| *b == 1));
    assert!(found[4096..8192].iter().all(|b| *b == 0));
    assert!(found[8192..].iter().all(|b| *b == 3));
    // An orderly end keeps what nobody flushed.
    assert_eq!(client.write(4096, &[4; 4096]), 0);
    export.clean().unwrap();
    assert!(client.sees_the_end());
    assert_eq!(export.power_cut(seed).unwrap(), Cut::default());
    assert_eq!(Client::connect(&export).read(4096, 1).unwrap(), [4]);
}

#[test]
fn a_flipped_byte_is_seen_until_it_is_written() {
    let (_folder, export) = empty();
    let mut client = Client::connect(&export);
    export.flip(5000, 0x81);
    export.flip(5001, 0xff);
    assert_eq!(client.read(4999, 3).unwrap(), [0, 0x81, 0xff]);
    // A write of a neighbour fills the rest of the block, and the damage stays.
    assert_eq!(client.write(4096, &[7]), 0);
    assert_eq!(client.read(4999, 3).unwrap(), [0, 0x81, 0xff]);
    assert_eq!(client.write(5000, &[9]), 0);
    assert_eq!(client.read(4999, 3).unwrap(), [0, 9, 0xff]);
    assert_eq!(client.request(0, 4, 4096, 4096, &[]), 0);
    assert_eq!(client.read(4999, 3).unwrap(), [0, 0, 0]);
}

#[test]
fn each_fault_hits_the_requests_that_touch_it_and_is_taken_back() {
    const EIO: u32 = 5;
    const ENOSPC: u32 = 28;
    let (_folder, export) = empty();
    let mut client = Client::connect(&export);
    assert_eq!(client.write(0, &[1; 16384]), 0);

    export.inject(Fault::ReadError(4096..4608));
    assert_eq!(client.read(4607, 1), Err(EIO));
    assert_eq!(client.read(0, 8192), Err(EIO));
    assert_eq!(client.read(4608, 512).unwrap(), [1; 512]);
    assert_eq!(client.write(4096, &[2]), 0, "reads fail, writes do not");
    export.heal();
    assert_eq!(client.read(4096, 2).unwrap(), [2, 1]);

    export.inject(Fault::WriteError(4096..4608));
    assert_eq!(client.write(4000, &[3; 97]), EIO);
    assert_eq!(client.request(0, 4, 0, 8192, &[]), EIO, "trim");
    assert_eq!(client.write(4000, &[3; 96]), 0);
    assert_eq!(client.read(4095, 2).unwrap(), [3, 2], "what failed did nothing");
    export.heal();

    export.inject(Fault::NoSpace { from: 8192 });
    assert_eq!(client.write(8191, &[4; 2]), ENOSPC);
    assert_eq!(client.write(8190, &[4; 2]), 0);
    assert_eq!(client.read(8191, 2).unwrap(), [4, 1]);
    export.heal();

    export.inject(Fault::Mismatch(100..102));
    assert_eq!(client.write(99, &[5; 4]), 0);
    let found = client.read(99, 4).unwrap();
    assert!(found[0] == 5 && found[1] != 5 && found[2] != 5 && found[3] == 5, "{found:?}");
    export.heal();
    assert_eq!(client.read(99, 4).unwrap(), [5; 4]);

    let before = export.counters().errors;
    assert_eq!(before, 5);
    export.inject(Fault::Latency(Duration::from_millis(30)));
    export.inject(Fault::Latency(Duration::from_millis(20)));
    let begin = Instant::now();
    client.read(0, 1).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(50));
    // Who waits does not hold up the end.
    export.inject(Fault::Latency(Duration::from_secs(3600)));
    client.send(&[&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0][..], &[0; 16], &[0, 0, 0, 1]].concat());
    export.power_cut(0).unwrap();
    assert!(client.sees_the_end());
}

#[test]
fn a_dropped_disk_leaves_nothing() {
    let (folder, export) = empty();
    let mut client = Client::connect(&export);
    assert_eq!(client.write(0, &[1; 4096]), 0);
    let socket = export.socket().to_owned();
    assert!(socket.exists());
    drop(export);
    assert!(client.sees_the_end());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "neither socket nor files");
    assert!(UnixStream::connect(socket).is_err());
}

#[test]
fn impossible_disks_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, [1; 8192]).unwrap();
    let good = Options::of_image(folder.path(), "d", &image);
    let table: [(Options, &str); 7] = [
        (Options { size: Some(4096), ..good.clone() }, "an image of 8192 bytes does not fit in 4096"),
        (Options { size: Some(8193), ..good.clone() }, "must be a multiple of 512"),
        (Options { size: Some(8704), block_size: 4096, ..good.clone() }, "must be a multiple of 4096"),
        (Options { size: Some(17 << 40), ..good.clone() }, "up to 16 TiB"),
        (Options { block_size: 1024, ..good.clone() }, "a block size of 1024 bytes"),
        (Options { image: Some("/nowhere".into()), ..good.clone() }, "its image cannot be read"),
        (Options { name: "x".repeat(120), ..good.clone() }, "too long for a socket"),
    ];
    for (options, reason) in table {
        let failure = Export::serve(options).unwrap_err();
        assert!(failure.to_string().contains(reason), "{failure} / {reason}");
    }
    Export::serve(good).unwrap();
    let gone = folder.path().join("gone");
    assert_eq!(Export::serve(Options::empty(&gone, "d", 512)).unwrap_err().kind, Kind::Store);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_client_harm_the_server(
        options in prop::collection::vec((0..12_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..4),
        go in any::<bool>(),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (_folder, export) = empty();
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        for (option, data) in options {
            bytes.extend(b"IHAVEOPT");
            bytes.extend(option.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        if go {
            bytes.extend(b"IHAVEOPT");
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
            bytes.extend([0x25, 0x60, 0x95, 0x13, 0]);
        }
        bytes.extend(rest);
        let mut stream = UnixStream::connect(export.socket()).unwrap();
        // It may hang up in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        prop_assert_eq!(Client::connect(&export).read(MIB - 1, 1).unwrap().len(), 1);
    }
}
