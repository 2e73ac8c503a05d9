//! nbdsh: every command from libnbd's Python, with libnbd's own strict checks on what comes back.

use crate::program::nbdsh;
use crate::scratch::{MIB, Scratch};
use crate::server::Server;

#[test]
fn every_command_from_python() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 4 * MIB);
    let server = Server::start([format!("disk={},description=snake", path.display())]);
    nbdsh(
        &server.uri("disk"),
        r#"
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.set_full_info(True)
h.connect_uri(uri)
assert h.get_protocol() == "newstyle-fixed"
assert h.get_structured_replies_negotiated()
assert h.get_size() == 4 << 20
assert h.get_export_description() == "snake"
assert h.get_canonical_export_name() == "disk"
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
buf = bytes(range(256)) * 16
h.pwrite(buf, 4096)
h.pwrite(buf, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == buf
chunks = []
def chunk(data, offset, status, err):
    chunks.append((offset, len(data), status))
assert h.pread_structured(65536, 0, chunk)[4096:8192] == buf
assert sum(c[1] for c in chunks) == 65536
h.flush()
h.cache(4096, 0)
h.zero(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 0)
h.pread_structured(1 << 20, 0, chunk, nbd.CMD_FLAG_DF)
extents = []
h.block_status(4 << 20, 0, lambda context, offset, entries, err: extents.append((context, list(entries))))
assert len(extents) == 1 and extents[0][0] == "base:allocation", extents
h.block_status(4 << 20, 0, lambda *a: 0, nbd.CMD_FLAG_REQ_ONE)
h.shutdown()
"#,
    );
}

#[test]
fn errors_arrive_as_the_right_errno() {
    let server = Server::start(["memory:1M", "ro=memory:1M,readonly=on"]);
    nbdsh(
        &server.uri(""),
        r#"
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
def fails(code, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, (errno.errorcode[code], str(error))
    else:
        raise AssertionError("no error")
fails(errno.EINVAL, lambda: h.pread(512, 1 << 20))
fails(errno.ENOSPC, lambda: h.pwrite(bytes(512), 1 << 20))
fails(errno.ENOSPC, lambda: h.zero(512, 1 << 20))
fails(errno.EINVAL, lambda: h.trim(512, 1 << 20))
fails(errno.EINVAL, lambda: h.block_status(512, 0, lambda *a: 0))
assert h.pread(4, 0) == bytes(4)
h.shutdown()
"#,
    );
    nbdsh(
        &server.uri("ro"),
        r#"
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.is_read_only()
for call in [lambda: h.pwrite(bytes(512), 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)]:
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, str(error)
    else:
        raise AssertionError("no error")
h.shutdown()
"#,
    );
}

#[test]
fn libnbd_speaks_oldstyle_with_us() {
    let server = Server::start(["--oldstyle", "memory:1M"]);
    nbdsh(
        &server.uri(""),
        r#"
h.connect_uri(uri)
assert h.get_protocol() == "oldstyle"
h.pwrite(b"o" * 512, 512)
assert h.pread(512, 512) == b"o" * 512
h.flush()
h.shutdown()
"#,
    );
}

#[test]
fn options_from_python() {
    let server = Server::start(["a=memory:1M,description=one", "b=memory:2M"]);
    nbdsh(
        &server.uri("a"),
        r#"
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
assert h.opt_list(lambda name, description: names.append((name, description))) == 2
assert names == [("a", "one"), ("b", "")], names
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert "base:allocation" in contexts, contexts
h.set_export_name("b")
h.opt_info()
assert h.get_size() == 2 << 20
h.set_export_name("nosuch")
try:
    h.opt_info()
    raise AssertionError("no error")
except nbd.Error:
    pass
h.set_export_name("a")
h.opt_go()
assert h.get_size() == 1 << 20
h.shutdown()
h2 = nbd.NBD()
h2.set_opt_mode(True)
h2.connect_uri(uri)
h2.opt_abort()
"#,
    );
}

/// One writes, another flushes, a third reads: what MULTI_CONN promises.
#[test]
fn a_flush_on_one_connection_covers_all() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 4 * MIB);
    let server = Server::start(["--shards".as_ref(), "2".as_ref(), path.as_os_str()]);
    nbdsh(
        &server.uri(""),
        r#"
handles = [nbd.NBD() for _ in range(8)]
for handle in handles:
    handle.connect_uri(uri)
    assert handle.can_multi_conn()
for round in range(20):
    for index, handle in enumerate(handles):
        handle.pwrite(bytes([round + 1, index] * 256), index * 512)
    handles[round % 8].flush()
    for index in range(8):
        assert handles[(index + round) % 8].pread(512, index * 512) == bytes([round + 1, index] * 256)
for handle in handles:
    handle.shutdown()
"#,
    );
}

#[test]
fn many_commands_in_flight_from_python() {
    let server = Server::tcp(["memory:16M"]);
    nbdsh(
        &server.uri(""),
        r#"
h.connect_uri(uri)
bufs = [nbd.Buffer.from_bytearray(bytearray([i % 251] * 4096)) for i in range(1000)]
cookies = [h.aio_pwrite(buf, i * 4096) for i, buf in enumerate(bufs)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
for i in range(1000):
    assert h.pread(4096, i * 4096) == bytes([i % 251] * 4096)
h.shutdown()
"#,
    );
}
