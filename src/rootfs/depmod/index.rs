//! The binary index of kmod: a trie over keys in 7-bit text, values with a priority at its nodes.
//!
//! ```text
//! u32 magic 0xB007F457   u32 version 2.1   u32 offset of the root node
//! node: [prefix NUL]  [u8 first, u8 last, u32 offset of each child]  [u32 count, (u32 priority, value NUL)…]
//! ```
//!
//! All numbers are big-endian. The top bits of an offset say which parts the node there has: prefix 0x80000000, values
//! 0x40000000, children 0x20000000. Described in kmod's `libkmod-index.c`.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const PREFIX: u32 = 0x8000_0000;
const VALUES: u32 = 0x4000_0000;
const CHILDREN: u32 = 0x2000_0000;

/// A key and its values.
type Pair<'a> = (&'a [u8], &'a [(u32, String)]);

/// Keys with their values, lowest priority number first.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<String, Vec<(u32, String)>>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds a value. Keys and values that are not 7-bit text are left out, since the format has no place for them. Of
    /// equal priorities the last added stands first, as kmod does it.
    pub(super) fn insert(&mut self, key: &str, value: &str, priority: u32) {
        if key.bytes().chain(value.bytes()).any(|b| b == 0 || b >= 128) {
            return;
        }
        let values = self.keys.entry(key.to_owned()).or_default();
        let at = values.partition_point(|(p, _)| *p < priority);
        values.insert(at, (priority, value.to_owned()));
    }

    /// The bytes of the index file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let sorted: Vec<Pair<'_>> = self.keys.iter().map(|(k, v)| (k.as_bytes(), v.as_slice())).collect();
        // The root has no prefix of its own, even when all keys begin alike.
        let root = Node::of(&sorted, 0, true);
        let mut out = Vec::new();
        [MAGIC, VERSION, 12 | root.mask()].into_iter().for_each(|w| out.extend(w.to_be_bytes()));
        root.write(&mut out);
        out
    }
}

struct Node<'a> {
    prefix: &'a [u8],
    values: &'a [(u32, String)],
    children: Vec<(u8, Node<'a>)>,
    /// Bytes of this node and of all below it.
    total: usize,
}

impl<'a> Node<'a> {
    /// The node for `keys`, which are sorted and share their first `depth` bytes.
    fn of(keys: &[Pair<'a>], depth: usize, root: bool) -> Self {
        let (first, last) = match (keys.first(), keys.last()) {
            (Some((first, _)), Some((last, _))) => (&first[depth..], &last[depth..]),
            _ => (&[][..], &[][..]),
        };
        // Of sorted keys, first and last share what all share.
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let shared = if root { 0 } else { shared };
        let mut node = Node { prefix: &first[..shared], values: &[], children: Vec::new(), total: 0 };
        let depth = depth + shared;
        let mut rest = keys;
        if let Some((_, values)) = keys.first().filter(|(key, _)| key.len() == depth) {
            node.values = values;
            rest = &keys[1..];
        }
        while let Some((key, _)) = rest.first() {
            let letter = key[depth];
            let count = rest.partition_point(|(k, _)| k[depth] <= letter);
            node.children.push((letter, Node::of(&rest[..count], depth + 1, false)));
            rest = &rest[count..];
        }
        node.total = node.size() + node.children.iter().map(|(_, c)| c.total).sum::<usize>();
        node
    }

    /// Children by every letter from the first to the last.
    fn span(&self) -> Option<(u8, u8)> {
        Some((self.children.first()?.0, self.children.last()?.0))
    }

    fn size(&self) -> usize {
        let prefix = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let children = self.span().map_or(0, |(a, b)| 2 + 4 * (usize::from(b - a) + 1));
        let values = if self.values.is_empty() { 0 } else { 4 };
        prefix + children + values + self.values.iter().map(|(_, v)| 4 + v.len() + 1).sum::<usize>()
    }

    fn mask(&self) -> u32 {
        let bit = |empty: bool, bit| if empty { 0 } else { bit };
        bit(self.prefix.is_empty(), PREFIX)
            | bit(self.values.is_empty(), VALUES)
            | bit(self.children.is_empty(), CHILDREN)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut next = out.len() + self.size();
        if !self.prefix.is_empty() {
            out.extend(self.prefix);
            out.push(0);
        }
        if let Some((first, last)) = self.span() {
            out.extend([first, last]);
            for letter in first..=last {
                let child = self.children.iter().find(|(l, _)| *l == letter);
                let offset = child.map_or(0, |(_, c)| {
                    let at = next as u32 | c.mask();
                    next += c.total;
                    at
                });
                out.extend(offset.to_be_bytes());
            }
        }
        if !self.values.is_empty() {
            out.extend((self.values.len() as u32).to_be_bytes());
            for (priority, value) in self.values {
                out.extend(priority.to_be_bytes());
                out.extend(value.as_bytes());
                out.push(0);
            }
        }
        self.children.iter().for_each(|(_, child)| child.write(out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_prefixes_and_keeps_values_by_priority() {
        let mut index = Index::new();
        index.insert("ab", "late", 7);
        index.insert("ab", "early", 3);
        index.insert("abc", "x", 1);
        index.insert("ümlaut", "x", 1);
        let bytes = index.encode();
        // Root: one child `a` at 12 + 6.
        let mut expected =
            vec![0xB0, 0x07, 0xF4, 0x57, 0, 2, 0, 1, 0x20, 0, 0, 12, b'a', b'a', 0xE0, 0, 0, 18];
        // `a`, prefix "b": child `c`, two values.
        expected.extend(b"b\0cc");
        expected.extend([0x40, 0, 0, 18 + 2 + 6 + 4 + 10 + 9]);
        expected.extend([0, 0, 0, 2, 0, 0, 0, 3]);
        expected.extend(b"early\0\0\0\0\x07late\0");
        expected.extend(b"\0\0\0\x01\0\0\0\x01x\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_empty_index_is_a_root_without_parts() {
        assert_eq!(Index::new().encode(), [0xB0, 0x07, 0xF4, 0x57, 0, 2, 0, 1, 0, 0, 0, 12]);
    }
}
