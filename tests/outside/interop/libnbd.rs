//! nbdinfo and nbdcopy.

use crate::program::run;
use crate::scratch::{MIB, Scratch, allocated, on_disk, pattern};
use crate::server::Server;

#[track_caller]
fn jq(json: &str, filter: &str) -> String {
    let scratch = Scratch::new();
    let path = scratch.path("in.json");
    std::fs::write(&path, json).expect("write");
    run("jq", ["-c".as_ref(), filter.as_ref(), path.as_os_str()]).ok().trim().to_owned()
}

#[test]
fn nbdinfo_shows_every_field() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let disk = format!("disk={},description=a description,rotational=off", path.display());
    let server = Server::start([&disk, "other=null:8T,readonly=on"]);
    let json = run("nbdinfo", ["--json", &server.uri("disk")]).ok();
    let table = [
        (".protocol", "\"newstyle-fixed\""),
        (".structured", "true"),
        (".exports[0].\"export-name\"", "\"disk\""),
        (".exports[0].description", "\"a description\""),
        (".exports[0].\"export-size\"", "1048576"),
        (".exports[0].is_read_only", "false"),
        (".exports[0].is_rotational", "false"),
        (".exports[0].can_cache", "true"),
        (".exports[0].can_df", "true"),
        (".exports[0].can_fast_zero", "true"),
        (".exports[0].can_flush", "true"),
        (".exports[0].can_fua", "true"),
        (".exports[0].can_multi_conn", "true"),
        (".exports[0].can_trim", "true"),
        (".exports[0].can_zero", "true"),
        (".exports[0].block_size_minimum", "1"),
        (".exports[0].block_size_maximum", "67108864"),
        (".exports[0].contexts | sort", "[\"base:allocation\",\"qemu:allocation-depth\"]"),
    ];
    for (filter, expected) in table {
        assert_eq!(jq(&json, filter), expected, "{filter}: {json}");
    }
    let json = run("nbdinfo", ["--json", &server.uri("other")]).ok();
    for (filter, expected) in [
        (".exports[0].is_read_only", "true"),
        (".exports[0].can_trim", "false"),
        (".exports[0].\"export-size\"", "8796093022208"),
    ] {
        assert_eq!(jq(&json, filter), expected, "{filter}: {json}");
    }
    assert_eq!(run("nbdinfo", ["--size", &server.uri("other")]).ok().trim(), "8796093022208");
    run("nbdinfo", ["--can", "write", &server.uri("disk")]).ok();
    assert!(!run("nbdinfo", ["--can", "write", &server.uri("other")]).success);
}

#[test]
fn nbdinfo_lists_what_is_not_hidden() {
    let server = Server::tcp(["a=memory:1M,description=first", "b=memory:2M", "c=memory:1M,hidden=on"]);
    let json = run("nbdinfo", ["--list", "--json", &server.uri("")]).ok();
    assert_eq!(
        jq(&json, "[.exports[] | [.\"export-name\", .\"export-size\"]]"),
        r#"[["a",1048576],["b",2097152]]"#
    );
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 16 * MIB);
    let server = Server::start([&path]);
    server.client(crate::client::Dialect::Simple).write(4 * MIB, &pattern(1, 1 << 20));
    let json = run("nbdinfo", ["--map", "--json", &server.uri("")]).ok();
    assert_eq!(
        jq(&json, "[.[] | [.offset, .length, .type]]"),
        "[[0,4194304,3],[4194304,1048576,0],[5242880,11534336,3]]"
    );
    let json = run("nbdinfo", ["--map=qemu:allocation-depth", "--json", &server.uri("")]).ok();
    // One layer: data is at depth 1; a hole is at 0, or at 1 if the layer is thought of as whole.
    assert_eq!(
        jq(&json, "[.[] | select(.offset <= 4194304 and .offset + .length > 4194304) | .type]"),
        "[1]",
        "{json}"
    );
    let totals = run("nbdinfo", ["--map", "--totals", &server.uri("")]).ok();
    assert!(totals.contains("1048576"), "{totals}");
}

#[test]
fn nbdcopy_both_ways_keeps_every_byte_and_every_hole() {
    let scratch = Scratch::new();
    let source = scratch.sparse("source", 64 * MIB + 512);
    let file = std::fs::File::options().write(true).open(&source).expect("open");
    for index in 0..20 {
        let at = index * 3 * MIB + index * 512;
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(index, 300_000), at).expect("write");
    }
    let disk = scratch.sparse("disk", 64 * MIB + 512);
    let back = scratch.path("back");
    let whole = |path: &std::path::Path| on_disk(path, 0, (64 << 20) + 512);
    for words in [&[][..], &["--connections=4", "--threads=2", "--requests=64"], &["--synchronous"]] {
        let server = Server::start(["--shards".as_ref(), "2".as_ref(), disk.as_os_str()]);
        let uri = server.uri("");
        let copy = |from: &str, to: &str| {
            run("nbdcopy", words.iter().copied().chain(["--flush", from, to])).ok();
        };
        copy(source.to_str().expect("UTF-8"), &uri);
        assert!(whole(&disk) == whole(&source), "{words:?}: to the server");
        assert!(allocated(&disk) < 16 * MIB, "{words:?}: holes stay holes");
        copy(&uri, back.to_str().expect("UTF-8"));
        assert!(whole(&back) == whole(&source), "{words:?}: from the server");
        std::fs::remove_file(&back).expect("remove");
    }
}

#[test]
fn nbdcopy_between_two_exports() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 32 * MIB);
    let server = Server::tcp(["memory:32M".into(), format!("a={}", path.display())]);
    run("nbdcopy", [server.uri("a"), server.uri("")]).ok();
    let mut copy = server.client(crate::client::Dialect::Structured);
    assert!(copy.read(0, 32 << 20) == on_disk(&path, 0, 32 << 20));
}
