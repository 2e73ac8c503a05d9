use super::*;

fn parse(text: &str) -> ExportSpec {
    ExportSpec::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    ExportSpec::parse(text).expect_err(text).to_string()
}

fn path(text: &str) -> Source {
    Source::Path(text.into())
}

#[test]
fn the_name_is_what_stands_before_the_first_equals_sign() {
    for (text, name, source) in [
        ("disk.img", "", path("disk.img")),
        ("=disk.img", "", path("disk.img")),
        ("a=disk1.img", "a", path("disk1.img")),
        ("b=block:/dev/loop0", "b", Source::Block("/dev/loop0".into())),
        ("a=b=c", "a", path("b=c")),
        ("=a=b", "", path("a=b")),
        ("ünï/cöde name=x", "ünï/cöde name", path("x")),
        ("a,b=x", "a,b", path("x")),
        ("file:a=b", "file:a", path("b")), // to serve the file `a=b`, write `=file:a=b`
        ("=file:a=b", "", Source::File("a=b".into())),
        ("memory:1G", "", Source::Memory(1 << 30)),
        ("scratch=null:8P", "scratch", Source::Null(8 << 50)),
    ] {
        let spec = parse(text);
        assert_eq!((spec.name.as_str(), &spec.source), (name, &source), "{text}");
    }
}

#[test]
fn an_equals_sign_after_an_options_name_belongs_to_the_option() {
    let spec = parse("disk.img,readonly=on");
    assert_eq!((spec.name.as_str(), spec.source), ("", path("disk.img")));
    assert!(spec.options.readonly);
    let spec = parse("memory:1M,description=a=b");
    assert_eq!((spec.name.as_str(), spec.options.description.as_deref()), ("", Some("a=b")));
    // The option's name has to be the last word, and a comma of the name's own keeps it from being one.
    assert_eq!(parse("readonly=disk.img").name, "readonly");
    assert_eq!(parse("x,,readonly=disk.img").name, "x,readonly");
    assert_eq!(parse("x,read=disk.img").name, "x,read");
}

#[test]
fn two_commas_are_one_of_the_text() {
    let spec = parse("n=a,,b.img,description=x,,y,size=1K");
    assert_eq!(spec.source, path("a,b.img"));
    assert_eq!(spec.options.description.as_deref(), Some("x,y"));
    assert_eq!(spec.options.size, Some(1024));
}

#[test]
fn every_option_lands_in_its_field() {
    let spec = parse(
        "n=file:d,offset=4K,size=1M,readonly=on,description=,direct=on,iopoll=on,strict=on,lock=off,writethrough=on,writes=thread,hidden=on,\
         tls=require,rotational=off",
    );
    let expected = ExportOptions {
        offset: 4096,
        size: Some(1 << 20),
        readonly: true,
        description: Some(String::new()),
        direct: true,
        iopoll: true,
        strict: true,
        lock: false,
        writethrough: true,
        writes: Some(Writes::Thread),
        hidden: true,
        tls: true,
        rotational: Some(false),
        upstream: UpstreamOptions::default(),
    };
    assert_eq!(spec.options, expected);
    assert_eq!(parse("d").options, ExportOptions::default());
    assert!(parse("d").options.lock);
}

#[test]
fn another_servers_export_is_named_by_its_uri() {
    for (text, name, uri) in [
        ("nbd://host/x", "", "nbd://host/x"),
        ("gate=nbd://[::1]:10810/a%20b", "gate", "nbd://[::1]:10810/a%20b"),
        ("gate=nbd+unix:///?socket=/tmp/a,,b", "gate", "nbd+unix:///?socket=/tmp/a,b"),
        ("nbd+unix:///x?socket=/s", "", "nbd+unix:///x?socket=/s"),
        ("old=nbd:unix:/s:exportname=x", "old", "nbd+unix:///x?socket=/s"),
    ] {
        let spec = parse(text);
        let expected = Source::Nbd(Uri::parse(uri).expect(uri));
        assert_eq!((spec.name.as_str(), spec.source), (name, expected), "{text}");
    }
    let spec =
        parse("a=nbd://h/x,connections=4,reconnect-delay=0,open-timeout=7,request-timeout=9,offset=1M");
    let expected = UpstreamOptions {
        connections: 4,
        reconnect_delay: Duration::ZERO,
        open_timeout: Duration::from_secs(7),
        request_timeout: Some(Duration::from_secs(9)),
    };
    assert_eq!((spec.options.upstream, spec.options.offset), (expected, 1 << 20));
    assert_eq!(parse("nbd://h/x,request-timeout=0").options.upstream.request_timeout, None);
}

#[test]
fn sizes_are_bytes_with_binary_suffixes() {
    for (text, size) in [
        ("0", 0),
        ("1", 1),
        ("512", 512),
        ("1K", 1 << 10),
        ("10m", 10 << 20),
        ("3G", 3 << 30),
        ("2T", 2 << 40),
        ("8191P", 8191 << 50),
        ("9223372036854775807", SIZE_MAX),
    ] {
        assert_eq!(parse_size(text), Ok(size), "{text}");
    }
    for text in ["", "K", "-1", "+1", "1.5G", "1KB", "1KiB", "0x10", "1 K", "٣", "G1", "1é", "é"] {
        assert!(matches!(parse_size(text), Err(SpecError::Size { .. })), "{text}");
    }
    for text in ["8192P", "9223372036854775808", "18446744073709551616", "99999999999999999999999999K"] {
        assert!(matches!(parse_size(text), Err(SpecError::SizeLarge { .. })), "{text}");
    }
}

#[test]
fn every_mistake_has_words_of_its_own() {
    let long = "x".repeat(STRING_LENGTH_MAX + 1);
    for (text, words) in [
        ("", "names no file or backend"),
        ("a=", "names no file or backend"),
        ("a=,readonly=on", "names no file or backend"),
        ("file:", "names no file or backend"),
        ("http://host/export", "only NBD URIs can be served"),
        ("nbd://host/export?a=b", "a= is not"),
        ("a=nbd+unix:///x", "needs ?socket=PATH"),
        (
            "a=nbd://host/x,direct=on",
            "`direct` makes no sense for `nbd`, which has no file or device behind it",
        ),
        ("d,connections=2", "`connections` makes no sense for `file`, which has no server behind it"),
        ("memory:1M,open-timeout=1", "`open-timeout` makes no sense for `memory`"),
        ("a=nbd://host/x,connections=0", "a whole number from 1 to 64"),
        ("a=nbd://host/x,connections=65", "a whole number from 1 to 64"),
        ("a=nbd://host/x,reconnect-delay=1s", "a whole number of seconds"),
        ("a=nbd://host/x,request-timeout", "write request-timeout=30"),
        ("memory:", "not a size"),
        ("memory:1X", "not a size"),
        ("memory:0", "size of 0"),
        ("null:8192P", "too large"),
        ("d,size=0", "size of 0"),
        ("d,offset=1Q", "not a size"),
        ("n=d,ofset=1", "unknown option `ofset`: the options are offset, size"),
        ("n=d,", "unknown option ``"),
        ("d,readonly=yes", "write on or off"),
        ("n=d,readonly", "write readonly=on"),
        ("n=d,lock", "write lock=off"),
        ("d,size=1,size=1", "given twice"),
        ("memory:1M,direct=on", "no sense for `memory`"),
        ("memory:1M,writes=ring", "no sense for `memory`"),
        ("d,writes=maybe", "write auto, ring, thread, inline or adaptive"),
        ("null:1M,size=1K", "no sense for `null`"),
        ("null:1M,offset=1K", "no sense for `null`"),
        ("faulty:1:memory:1M,direct=on", "no sense for `memory`"),
        ("faulty:x:memory:1M", "not a seed"),
        ("faulty:memory", "not a seed"),
        ("faulty:1:", "names no file or backend"),
        ("faulty:1:faulty:2:memory:1M", "names no file or backend"),
        ("a\0b=d", "contains a NUL"),
        ("d,description=a\0b", "contains a NUL"),
        (&format!("{long}=d"), "has 4097 bytes"),
        (&format!("d,description={long}"), "has 4097 bytes"),
    ] {
        let said = refusal(text);
        assert!(said.contains(words), "{text:.40}: {said}");
    }
}

#[test]
fn a_path_may_look_nearly_like_something_else() {
    for text in ["a:b", "/dev/disk/by-path/pci-0000:00", "C:/disk", "1://x", "memory", "./memory:1G"] {
        assert_eq!(parse(text).source, path(text), "{text}");
    }
}

#[test]
fn a_faulty_backend_wraps_any_other() {
    let spec = parse("t=faulty:7:file:d,offset=1");
    assert_eq!(spec.source, Source::Faulty { seed: 7, inner: Box::new(Source::File("d".into())) });
    assert_eq!(spec.options.offset, 1);
}

#[test]
fn two_exports_of_one_name_are_refused() {
    let error = |words: &[&str]| ExportSpec::parse_all(words).expect_err("names clash");
    assert_eq!(error(&["a=x", "b=y", "a=z"]), SpecError::NameTwice { name: "a".to_owned() });
    assert_eq!(error(&["x", "=y"]), SpecError::DefaultTwice);
    assert_eq!(ExportSpec::parse_all(&["x", "a=x", "b=x"]).map(|specs| specs.len()), Ok(3));
}

#[test]
fn no_words_bring_the_parser_down() {
    let pieces = [
        "a",
        "=",
        ",",
        ",,",
        ":",
        "://",
        "file:",
        "memory:",
        "1",
        "K",
        "size=",
        "readonly=",
        "é",
        "\0",
        "on",
    ];
    let mut state = 1_usize;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(pieces[(state >> 33) % pieces.len()]);
        }
        let _ = ExportSpec::parse(&text);
    }
}
