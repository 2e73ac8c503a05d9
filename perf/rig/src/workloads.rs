//! The workloads, one row each, in fio's words.

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) rw: &'static str,
    pub(crate) bs: &'static str,
    /// Requests in flight on each connection.
    pub(crate) iodepth: u32,
    /// Connections.
    pub(crate) numjobs: u32,
    /// Percentage of reads where `rw` mixes.
    pub(crate) rwmixread: Option<u32>,
    /// A flush after so many writes.
    pub(crate) fsync: Option<u32>,
    /// The server goes around the page cache.
    pub(crate) direct: bool,
    /// Through TLS.
    pub(crate) tls: bool,
    /// Also driven with fio's nbd engine.
    pub(crate) fio: bool,
}

impl Workload {
    pub(crate) fn writes(&self) -> bool {
        self.rw != "read" && self.rw != "randread"
    }
}

const READ_4K: Workload = Workload {
    name: "randread-4k-32",
    title: "4k random read, 32 in flight",
    rw: "randread",
    bs: "4k",
    iodepth: 32,
    numjobs: 1,
    rwmixread: None,
    fsync: None,
    direct: false,
    tls: false,
    fio: true,
};

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "randread-4k-1",
        title: "4k random read, 1 in flight",
        iodepth: 1,
        fio: false,
        ..READ_4K
    },
    READ_4K,
    Workload {
        name: "randread-4k-16x4",
        title: "4k random read, 16 in flight on each of 4 connections",
        iodepth: 16,
        numjobs: 4,
        fio: false,
        ..READ_4K
    },
    Workload { name: "randwrite-4k-32", title: "4k random write, 32 in flight", rw: "randwrite", ..READ_4K },
    Workload {
        name: "randwrite-4k-16x4",
        title: "4k random write, 16 in flight on each of 4 connections",
        rw: "randwrite",
        iodepth: 16,
        numjobs: 4,
        fio: false,
        ..READ_4K
    },
    Workload {
        name: "randrw-4k-fsync-32",
        title: "4k random, 70 % reads, a flush after 32 writes, 32 in flight",
        rw: "randrw",
        rwmixread: Some(70),
        fsync: Some(32),
        fio: false,
        ..READ_4K
    },
    Workload {
        name: "read-256k-16",
        title: "256k sequential read, 16 in flight",
        rw: "read",
        bs: "256k",
        iodepth: 16,
        ..READ_4K
    },
    Workload {
        name: "write-256k-16",
        title: "256k sequential write, 16 in flight",
        rw: "write",
        bs: "256k",
        iodepth: 16,
        fio: false,
        ..READ_4K
    },
    Workload {
        name: "randread-4k-direct-32",
        title: "4k random read around the page cache, 32 in flight",
        direct: true,
        fio: false,
        ..READ_4K
    },
    Workload {
        name: "randread-4k-32-tls",
        title: "4k random read through TLS, 32 in flight",
        tls: true,
        ..READ_4K
    },
    Workload {
        name: "read-256k-16-tls",
        title: "256k sequential read through TLS, 16 in flight",
        rw: "read",
        bs: "256k",
        iodepth: 16,
        tls: true,
        ..READ_4K
    },
];
