//! A guest of a few lines stands on the segment: it says back what it hears, on port 7 (RFC 862).

use super::*;
use crate::qemu::switch::Switch;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const ECHO: u16 = 7;
const LIMIT: Duration = Duration::from_secs(120);

/// Answers on `tap` until `stop`.
fn guest(tap: Tap, stop: &AtomicBool) {
    let mut wire = Wire::new(tap);
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

/// Does `work` with a tap on the segment of the guest.
fn with_tap(work: impl FnOnce(Tap)) {
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
        work(ours);
    });
}

fn ours() -> Ipv4Net {
    "10.77.0.254/24".parse().unwrap()
}

/// Does `work` with a way to `port` of the guest.
fn with_guest(port: u16, work: impl FnOnce(Forward)) {
    with_tap(|tap| work(Forward::start(tap, ours(), SocketAddrV4::new(GUEST, port)).unwrap()));
}

/// Does `work` with the host that leads to the guest's echo, which is moved by the test, and a client of it that does not wait.
fn with_host(work: impl FnOnce(&mut Host, &mut TcpStream)) {
    with_tap(|tap| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        // Of whoever connects: what a client does not read is soon nowhere but in our host.
        rustix::net::sockopt::set_socket_send_buffer_size(&listener, 4096).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut host = Host::new(tap, listener, ours(), SocketAddrV4::new(GUEST, ECHO));
        work(&mut host, &mut client);
    });
}

/// Turns until the client has read `count` bytes.
#[track_caller]
fn reads(host: &mut Host, client: &mut TcpStream, count: usize) -> Vec<u8> {
    let end = Instant::now() + LIMIT;
    let mut found = vec![0; count];
    let mut have = 0;
    while have < count {
        assert!(host.turn() && Instant::now() < end, "{have} bytes of {count}");
        match client.read(&mut found[have..]) {
            Ok(0) => panic!("the connection ended after {have} bytes of {count}"),
            Ok(more) => have += more,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    found
}

/// Lets time pass for the host, more than it would wait for a guest that says nothing. To the guest it is seconds: enough to answer.
fn pass_time(host: &mut Host) {
    for _ in 0..50 {
        host.begun -= Duration::from_secs(2);
        assert!(host.turn());
    }
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
        let forward = &forward;
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
        let read = connect(&forward).read_to_end(&mut answer);
        assert!(
            answer.is_empty() && read.map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |n| n == 0)
        );
    });
}

#[test]
fn a_client_that_goes_away_leaves_the_others_alone_and_dropping_ends_all() {
    with_guest(ECHO, |forward| {
        let mut stays = connect(&forward);
        for _ in 0..20 {
            let mut leaves = connect(&forward);
            leaves.write_all(&[1; 100_000]).unwrap();
        }
        let mut answer = [0; 5];
        stays.write_all(b"there").unwrap();
        stays.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"there");

        let address = forward.address();
        drop(forward);
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        let ended = stays.read(&mut answer);
        assert!(
            ended.as_ref().map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |n| *n == 0),
            "{ended:?}"
        );
    });
}

#[test]
fn a_connection_on_which_nobody_says_anything_stays() {
    with_host(|host, client| {
        client.write_all(b"there").unwrap();
        assert_eq!(reads(host, client, 5), b"there");
        pass_time(host);
        client.write_all(b"still").unwrap();
        assert_eq!(reads(host, client, 5), b"still");
    });
}

#[test]
fn a_client_that_does_not_read_for_a_while_loses_nothing() {
    with_host(|host, client| {
        let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
        let end = Instant::now() + LIMIT;
        let mut said = 0;
        // Until there is no room any more for what comes back.
        let full = |host: &Host| {
            let socket = host.connections.first().map(|one| host.sockets.get::<tcp::Socket<'_>>(one.socket));
            socket.is_some_and(|socket| socket.recv_queue() + MTU > socket.recv_capacity())
        };
        while !full(host) {
            let more: Vec<u8> = (said..said + 4096).map(byte).collect();
            match client.write(&more) {
                Ok(count) => said += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            assert!(host.turn() && Instant::now() < end);
        }
        pass_time(host);
        assert!(full(host), "nobody read");
        assert!(reads(host, client, said).into_iter().eq((0..said).map(byte)));
        client.write_all(b"still").unwrap();
        assert_eq!(reads(host, client, 5), b"still");
    });
}

#[test]
fn nobody_sleeps_while_frames_wait_that_the_tap_has_read() {
    let switch = Switch::new("lan", 1).unwrap();
    let (tap, mut theirs) = (switch.tap("outside").unwrap(), switch.tap("guest").unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut host = Host::new(tap, listener, ours(), SocketAddrV4::new(GUEST, ECHO));
    // To everybody, and of a kind (IEEE 802, local experiments) that our host does not know.
    let mut frame = [0xFF; 64];
    frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 0x11]);
    frame[12..14].copy_from_slice(&[0x88, 0xB5]);
    for _ in 0..FRAMES + 50 {
        theirs.send(&frame).unwrap();
    }
    let end = Instant::now() + LIMIT;
    while host.wire.received.len() < FRAMES {
        assert!(!host.wire.more && host.nap() > Duration::ZERO && Instant::now() < end);
        host.wire.receive();
    }
    assert_eq!(host.nap(), Duration::ZERO);
    let mut taken = FRAMES;
    while taken < FRAMES + 50 {
        host.wire.received.clear();
        host.wire.receive();
        taken += host.wire.received.len();
        assert!(Instant::now() < end, "{taken}");
    }
    assert!(host.nap() > Duration::ZERO);
}
