//! DHCP packets of clients.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::deploy::pxe::dhcp::packet::{Message, Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::parse(data) {
        let _ = (request.uuid(), request.arch(), request.is_ipxe(), request.asks_for(67));
        assert!(request.class().len() <= 64);
        let reply = Reply::new(Message::Offer).file("snponly.efi").bytes(&request);
        assert!(reply.len() >= 300 && reply[28..34] == request.mac.bytes());
    }
});
