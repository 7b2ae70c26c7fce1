//! A guest of a few lines stands on the segment: it says back what it hears, on port 7 (RFC 862).

use super::*;
use crate::qemu::switch::Switch;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const ECHO: u16 = 7;
const LIMIT: Duration = Duration::from_secs(120);

/// Answers on `tap` until `stop`.
fn guest(tap: Tap, stop: &AtomicBool) {
    let mut wire = Wire { tap, received: VecDeque::new(), sent: VecDeque::new(), gone: false };
    let mut config = Config::new(EthernetAddress([0x52, 0x54, 0, 0, 0, 0x11]).into());
    config.random_seed = 7;
    let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap());
    let mut sockets = SocketSet::new(Vec::new());
    let listen = || {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(ECHO).unwrap();
        socket
    };
    let handles: Vec<_> = (0..8).map(|_| sockets.add(listen())).collect();
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) && !wire.gone {
        wire.receive();
        interface.poll(Moment::from_millis(begun.elapsed().as_millis() as i64), &mut wire, &mut sockets);
        for handle in &handles {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            while socket.can_recv() && socket.can_send() {
                let mut bytes = vec![0; 4096.min(socket.send_capacity() - socket.send_queue())];
                let count = socket.recv_slice(&mut bytes).unwrap();
                assert_eq!(socket.send_slice(&bytes[..count]).unwrap(), count);
            }
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                socket.close();
            }
            if !socket.is_open() {
                *socket = listen();
            }
        }
        interface.poll(Moment::from_millis(begun.elapsed().as_millis() as i64), &mut wire, &mut sockets);
        wire.send();
        let limit = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let _ = poll(&mut [PollFd::new(&wire.tap, PollFlags::IN)], Some(&limit));
    }
}

/// Does `work` with a way to `port` of the guest.
fn with_guest(port: u16, work: impl FnOnce(&Forward)) {
    let switch = Switch::new("lan", 1).unwrap();
    let (ours, theirs) = (switch.tap("outside").unwrap(), switch.tap("guest").unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| guest(theirs, &stop));
        // A panic of the work must end the guest, too.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&stop);
        let from = "10.77.0.254/24".parse().unwrap();
        work(&Forward::start(ours, from, SocketAddrV4::new(GUEST, port)).unwrap());
    });
}

fn connect(forward: &Forward) -> TcpStream {
    let client = TcpStream::connect(forward.address()).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.set_write_timeout(Some(LIMIT)).unwrap();
    client
}

#[test]
fn what_goes_in_comes_back_whole_and_the_ends_are_told() {
    with_guest(ECHO, |forward| {
        assert!(forward.address().ip().is_loopback());
        std::thread::scope(|scope| {
            for seed in 0..4_u32 {
                scope.spawn(move || {
                    let bytes: Vec<u8> = (0..1_000_000_u32)
                        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed as u8)
                        .collect();
                    let client = connect(forward);
                    let writer = client.try_clone().unwrap();
                    let said = bytes.clone();
                    let write = std::thread::spawn(move || {
                        (&writer).write_all(&said).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::new();
                    // It ends, so the guest was told that the client has said all, and the client that the guest has.
                    (&client).read_to_end(&mut back).unwrap();
                    write.join().unwrap();
                    assert!(back == bytes, "{} bytes came back of {}", back.len(), bytes.len());
                });
            }
        });
    });
}

#[test]
fn where_nobody_listens_the_connection_ends() {
    with_guest(ECHO + 1, |forward| {
        let mut answer = Vec::new();
        let read = connect(forward).read_to_end(&mut answer);
        assert!(
            answer.is_empty() && read.map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |n| n == 0)
        );
    });
}

#[test]
fn a_client_that_goes_away_leaves_the_others_alone_and_dropping_ends_all() {
    with_guest(ECHO, |forward| {
        let mut stays = connect(forward);
        for _ in 0..20 {
            let mut leaves = connect(forward);
            leaves.write_all(&[1; 100_000]).unwrap();
        }
        let mut answer = [0; 5];
        stays.write_all(b"there").unwrap();
        stays.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"there");
    });
}
