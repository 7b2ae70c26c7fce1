//! Which address lives at which port: learned from the senders of frames, forgotten when they are silent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::frame::Mac;

/// How long a silent address is kept (IEEE 802.1Q-2018, table 8-3).
pub(super) const AGEING: Duration = Duration::from_secs(300);

/// How many addresses are kept. A small switch knows 8192; whatever does not fit is flooded, as by a real one.
pub(super) const CAPACITY: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: usize,
    seen: Instant,
}

/// The addresses of one segment, by VLAN: the same address in two VLANs is two addresses (independent learning).
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<(u16, Mac), Entry>,
    /// Before this moment no entry of a full table is old enough to make room.
    full_until: Option<Instant>,
}

impl Table {
    /// `mac` has just sent a frame into `port`. An address that moved is found at its new port from now on.
    pub(super) fn learn(&mut self, vlan: u16, mac: Mac, port: usize, now: Instant) {
        let entry = Entry { port, seen: now };
        if let Some(known) = self.entries.get_mut(&(vlan, mac)) {
            *known = entry;
        } else if self.entries.len() < CAPACITY || self.make_room(now) {
            self.entries.insert((vlan, mac), entry);
        }
    }

    /// The port where `mac` was heard last, unless that is too long ago.
    pub(super) fn find(&self, vlan: u16, mac: Mac, now: Instant) -> Option<usize> {
        let entry = self.entries.get(&(vlan, mac))?;
        (now.saturating_duration_since(entry.seen) < AGEING).then_some(entry.port)
    }

    /// The cable of `port` was pulled: whoever was there may be anywhere.
    pub(super) fn forget(&mut self, port: usize) {
        self.entries.retain(|_, entry| entry.port != port);
        self.full_until = None;
    }

    /// Drops what is too old; false when nothing is. A flood of invented senders looks through the table once, not for each frame.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full_until.is_some_and(|until| now < until) {
            return false;
        }
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.seen) < AGEING);
        if self.entries.len() < CAPACITY {
            self.full_until = None;
            return true;
        }
        self.full_until = self.entries.values().map(|entry| entry.seen).min().map(|oldest| oldest + AGEING);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [0x52, 0x54, 0, 0, 0, 1];

    #[test]
    fn an_address_is_found_until_it_is_silent_for_five_minutes() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.learn(0, A, 3, start);
        let almost = start + AGEING - Duration::from_nanos(1);
        assert_eq!(table.find(0, A, almost), Some(3));
        assert_eq!(table.find(0, A, start + AGEING), None);
        table.learn(0, A, 3, almost);
        assert_eq!(table.find(0, A, start + AGEING), Some(3), "a frame makes it young again");
    }

    #[test]
    fn an_address_moves_and_is_another_in_another_vlan() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(0, A, 1, now);
        table.learn(7, A, 2, now);
        table.learn(0, A, 5, now);
        assert_eq!((table.find(0, A, now), table.find(7, A, now)), (Some(5), Some(2)));
        assert_eq!(table.find(8, A, now), None);
        table.forget(5);
        assert_eq!((table.find(0, A, now), table.find(7, A, now)), (None, Some(2)));
    }

    #[test]
    fn a_full_table_learns_nothing_until_old_entries_make_room() {
        let (mut table, start) = (Table::default(), Instant::now());
        let mac = |number: usize| {
            let [.., a, b, c] = number.to_be_bytes();
            [0x52, 0x54, 0, a, b, c]
        };
        let second = Duration::from_secs(1);
        for number in 0..CAPACITY {
            table.learn(0, mac(number), 1, start + second * u32::from(number != 0));
        }
        table.learn(0, mac(CAPACITY), 1, start + second);
        assert_eq!(table.find(0, mac(CAPACITY), start + second), None);
        table.learn(0, mac(7), 2, start + second);
        assert_eq!(table.find(0, mac(7), start + second), Some(2), "known ones still move");
        table.learn(0, mac(CAPACITY), 1, start + AGEING);
        assert_eq!(table.find(0, mac(CAPACITY), start + AGEING), Some(1), "the first had grown old");
        assert!(table.entries.len() <= CAPACITY);
    }
}
