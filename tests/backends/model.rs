//! A backend beside a `Vec<u8>` that must always agree with it.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use ringnbd::backend::{Backend, Failure, Zero};
use ringnbd::rt::Buffer;
use rustix::fs::{SeekFrom, seek};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// From `RINGNBD_SEED`, or from the clock; printed, so that a failure can be had again.
    pub(crate) fn announced(what: &str) -> (u64, Self) {
        let clock = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::from(now.subsec_nanos()) ^ now.as_secs() << 20
        };
        let seed = std::env::var("RINGNBD_SEED").map_or_else(|_| clock(), |text| text.parse().unwrap());
        println!("{what}: RINGNBD_SEED={seed}");
        (seed, Self(seed))
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self) -> bool {
        self.next() & 1 == 0
    }

    /// A range inside `0..size`: aligned and not, small and large, often at the very end.
    pub(crate) fn range(&mut self, size: u64) -> (u64, u64) {
        let grain = [1, 1, 512, 4096, 65_536][self.index(5)].min(size);
        let most = [100, 5000, 70_000, 300_000][self.index(4)].min(size);
        let length = (1 + self.below(most)).next_multiple_of(grain).min(size);
        let last = size - length;
        let offset = if self.below(8) == 0 { last } else { self.below(last + 1) / grain * grain };
        (offset, length)
    }

    pub(crate) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        // Never a zero: zeroes are to come from zeroing only.
        bytes.fill_with(|| u8::try_from(1 + self.below(255)).unwrap());
    }
}

pub(crate) fn at(offset: u64, length: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
}

pub(crate) async fn read(backend: &Backend, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
    let mut buffer = Buffer::acquire(usize::try_from(length).unwrap()).await;
    buffer.fill(0xee);
    let (result, buffer) = backend.read(buffer, offset).await;
    result.map(|()| buffer.to_vec())
}

pub(crate) async fn write(backend: &Backend, offset: u64, bytes: &[u8], fua: bool) -> Result<(), Failure> {
    let mut buffer = Buffer::acquire(bytes.len()).await;
    buffer.copy_from_slice(bytes);
    let (result, buffer) = backend.write(buffer, offset, fua).await;
    assert_eq!(&buffer[..], bytes, "a write changed its buffer");
    result
}

pub(crate) fn assert_same(found: &[u8], expected: &[u8], offset: u64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(first) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let differ = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: {differ} bytes differ, the first at {}: {:#x} instead of {:#x}",
            offset + first as u64,
            found[first],
            expected[first]
        );
    }
}

/// One backend and what it must hold.
pub(crate) struct Pair {
    pub(crate) backend: Backend,
    pub(crate) bytes: Vec<u8>,
    /// The file itself and where the export begins in it, to ask for holes past the backend.
    pub(crate) file: Option<(File, u64)>,
    /// Whether faults are expected: a failed change leaves old or new bytes.
    pub(crate) faulty: bool,
    /// Requests that failed.
    pub(crate) failures: u32,
}

impl Pair {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// One random request, checked.
    pub(crate) async fn step(&mut self, random: &mut Random) {
        let (offset, length) = random.range(self.size());
        let fua = random.below(4) == 0;
        match random.below(16) {
            0..=3 => self.check_read(offset, length).await,
            4..=8 => {
                let mut bytes = vec![0; at(0, length).end];
                random.fill(&mut bytes);
                let result = write(&self.backend, offset, &bytes, fua).await;
                self.changed(offset, &bytes, result, "write").await;
            }
            9 => self.trim(offset, length, fua).await,
            10..=12 => self.zero(offset, length, random, fua).await,
            13 => {
                let result = self.backend.flush().await;
                self.expect(result, "flush");
            }
            14 => self.extents(offset, length, random).await,
            _ => {
                let result = self.backend.cache(offset, length).await;
                self.expect(result, "cache");
            }
        }
    }

    pub(crate) async fn check_read(&mut self, offset: u64, length: u64) {
        match read(&self.backend, offset, length).await {
            Ok(found) => assert_same(&found, &self.bytes[at(offset, length)], offset, "read"),
            Err(failure) => {
                let first = failure.at;
                self.expect(Err(failure), "read");
                assert!(first.is_none_or(|at| (offset..offset + length).contains(&at)), "{first:?}");
            }
        }
    }

    /// Everything at once, as often as faults make it necessary.
    pub(crate) async fn check_all(&mut self) {
        let size = self.size();
        for offset in (0..size).step_by(1 << 20) {
            self.check_read(offset, (size - offset).min(1 << 20)).await;
        }
    }

    fn expect(&mut self, result: Result<(), Failure>, what: &str) {
        if let Err(failure) = result {
            assert!(self.faulty, "{what}: {failure:?}");
            assert!(!failure.text.is_empty() && failure.errno > 0, "{failure:?}");
            self.failures += 1;
        }
    }

    /// Takes over what a change left: the new bytes, or any mixture after a failure.
    async fn changed(&mut self, offset: u64, new: &[u8], result: Result<(), Failure>, what: &str) {
        let range = at(offset, new.len() as u64);
        if result.is_ok() {
            self.bytes[range].copy_from_slice(new);
            return;
        }
        self.expect(result, what);
        self.adopt(offset, new, what).await;
    }

    /// Each byte may be old or new: takes over which.
    async fn adopt(&mut self, offset: u64, new: &[u8], what: &str) {
        let length = new.len() as u64;
        let found = loop {
            match read(&self.backend, offset, length).await {
                Ok(found) => break found,
                Err(failure) => self.expect(Err(failure), "read"),
            }
        };
        let old = &self.bytes[at(offset, length)];
        for (index, byte) in found.iter().enumerate() {
            let legal = *byte == old[index] || *byte == new[index];
            assert!(legal, "{what}: {byte:#x} at {} is neither old nor new", offset + index as u64);
        }
        self.bytes[at(offset, length)].copy_from_slice(&found);
    }

    async fn trim(&mut self, offset: u64, length: u64, fua: bool) {
        let result = self.backend.trim(offset, length, fua).await;
        self.expect(result, "trim");
        self.adopt(offset, &vec![0; at(0, length).end], "trim").await;
        self.check_known(offset, length);
    }

    async fn zero(&mut self, offset: u64, length: u64, random: &mut Random, fua: bool) {
        let how = Zero { may_punch: random.chance(), fast_only: random.chance() };
        let result = self.backend.zero(offset, length, how, fua).await;
        match result {
            Err(failure) if how.fast_only && failure.errno == libc::EOPNOTSUPP => {
                self.check_read(offset, length).await; // refused, so untouched
            }
            result => self.changed(offset, &vec![0; at(0, length).end], result, "zero").await,
        }
        self.check_known(offset, length);
    }

    async fn extents(&mut self, offset: u64, length: u64, random: &mut Random) {
        let most = [1, 2, 1000][random.index(3)];
        let found = match self.backend.extents(offset, length, most).await {
            Ok(found) => found,
            Err(failure) => return self.expect(Err(failure), "extents"),
        };
        assert!(!found.is_empty() && found.len() <= most, "{} of {most}", found.len());
        let mut place = offset;
        let mut before = None;
        for extent in &found {
            assert!(extent.length > 0, "{found:?}");
            assert_ne!(before, Some((extent.hole, extent.zero)), "neighbours are alike: {found:?}");
            before = Some((extent.hole, extent.zero));
            if extent.zero {
                let bytes = &self.bytes[at(place, extent.length)];
                assert!(bytes.iter().all(|byte| *byte == 0), "data was called zero in {found:?} at {place}");
            }
            place += extent.length;
        }
        assert!(place <= offset + length, "{found:?} reaches beyond what was asked");
        assert!(place == offset + length || found.len() == most, "{found:?} ends early");
        self.check_known(offset, length);
    }

    /// What is called known data holds no hole: else sparse reads would never see it.
    fn check_known(&self, offset: u64, length: u64) {
        let Some((file, base)) = &self.file else { return };
        if self.backend.known_data(offset, length) {
            let hole = seek(file, SeekFrom::Hole(base + offset)).unwrap();
            assert!(hole >= base + offset + length, "a hole at {hole} is known as data");
        }
    }
}
