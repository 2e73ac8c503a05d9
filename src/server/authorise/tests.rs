use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::sys::socket::Credentials;

fn certificate(name: &str, issuer: &str) -> Certificate {
    Certificate {
        subject: format!("CN={name},O=Example"),
        common_names: vec![name.to_owned()],
        names: vec![format!("dns:{name}.example.org"), "ip:192.0.2.1".to_owned()],
        issuer: issuer.to_owned(),
    }
}

fn peer(address: Address, channel: Channel) -> Peer {
    Peer { address, channel }
}

fn tcp(address: &str) -> Address {
    Address::Tcp(format!("{address}:40000").parse::<SocketAddr>().expect("an address"))
}

fn unix(uid: u32, gid: u32) -> Address {
    Address::Unix(Credentials { pid: None, uid, gid })
}

/// One of each kind of peer.
fn peers() -> Vec<Peer> {
    let backup = || certificate("backup1", "CN=ca");
    let other = certificate("other", "CN=elsewhere");
    vec![
        peer(tcp("10.1.2.3"), Channel::Plain),
        peer(tcp("[::ffff:10.1.2.3]"), Channel::Tls(None)),
        peer(tcp("[2001:db8::1]"), Channel::Tls(Some(backup()))),
        peer(tcp("192.0.2.9"), Channel::Tls(Some(other))),
        peer(unix(0, 0), Channel::Plain),
        peer(unix(1000, 50), Channel::Tls(Some(backup()))),
        peer(Address::Vsock { cid: 3, port: 9 }, Channel::Plain),
    ]
}

/// Words about a peer, and of which of [`peers`] they hold.
const PEERS: &[(&str, [u8; 7])] = &[
    ("", [1, 1, 1, 1, 1, 1, 1]),
    ("cn=backup*", [0, 0, 1, 0, 0, 1, 0]),
    ("dn=CN=backup?,,O=Example", [0, 0, 1, 0, 0, 1, 0]),
    ("dn=CN=other,,O=Example", [0, 0, 0, 1, 0, 0, 0]),
    ("san=dns:OTHER.example.org", [0, 0, 0, 1, 0, 0, 0]),
    ("issuer=CN=ca", [0, 0, 1, 0, 0, 1, 0]),
    ("ip=10.0.0.0/8", [1, 1, 0, 0, 0, 0, 0]),
    ("ip=2001:db8::/32", [0, 0, 1, 0, 0, 0, 0]),
    ("uid=1000", [0, 0, 0, 0, 0, 1, 0]),
    ("gid=0", [0, 0, 0, 0, 1, 0, 0]),
    ("cid=3", [0, 0, 0, 0, 0, 0, 1]),
    ("tls=on", [0, 1, 1, 1, 0, 1, 0]),
    ("tls=off", [1, 0, 0, 0, 1, 0, 1]),
];

const NAMES: [&str; 3] = ["", "disk-1", "scratch"];
/// Words about an export, and of which of [`NAMES`] they hold.
const EXPORTS: &[(&str, [u8; 3])] =
    &[("", [1, 1, 1]), ("export=disk-*", [0, 1, 0]), ("export=", [1, 0, 0]), ("export=?*", [0, 1, 1])];

const RIGHTS: [Right; 3] = [Right::List, Right::Read, Right::Write];

/// A rule as the model knows it: numbers into the tables above.
#[derive(Clone, Copy, Debug)]
struct Known {
    allow: bool,
    right: usize,
    peer: usize,
    export: usize,
}

impl Known {
    fn parse(self) -> Rule {
        let right = format!("right={}", RIGHTS[self.right].name());
        let parts = [PEERS[self.peer].0, EXPORTS[self.export].0, right.as_str()];
        let words: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let verdict = if self.allow { Verdict::Allow } else { Verdict::Deny };
        Rule::parse(verdict, &words.join(",")).expect("a rule")
    }
}

fn every_rule(peers: usize, exports: usize) -> Vec<Known> {
    let mut rules = Vec::new();
    for allow in [false, true] {
        for right in 0..RIGHTS.len() {
            for peer in 0..peers {
                rules.extend((0..exports).map(|export| Known { allow, right, peer, export }));
            }
        }
    }
    rules
}

/// The documentation, word by word: each right for itself goes by the first rule that speaks about it.
fn model(rules: &[Known], peer: usize, name: usize) -> Option<Right> {
    let has = |right: usize| {
        let first = rules.iter().find(|rule| {
            let speaks = if rule.allow { right <= rule.right } else { right >= rule.right };
            speaks && PEERS[rule.peer].1[peer] == 1 && EXPORTS[rule.export].1[name] == 1
        });
        first.map_or(rules.is_empty(), |rule| rule.allow)
    };
    let held: Vec<_> = (0..RIGHTS.len()).map(has).collect();
    assert!(held.is_sorted_by(|below, above| below >= above), "a right without those below it: {rules:?}");
    held.iter().rposition(|held| *held).map(|right| RIGHTS[right])
}

fn check(known: &[Known], rules: &Rules, peers: &[Peer]) {
    for (number, peer) in peers.iter().enumerate() {
        for (index, name) in NAMES.iter().enumerate() {
            let decided = rules.decide(peer, name).right;
            assert_eq!(decided, model(known, number, index), "{peer} on {name:?} by {known:?}");
        }
    }
}

#[test]
fn every_pair_of_rules_decides_as_the_model_for_every_peer_and_export() {
    let (peers, known) = (peers(), every_rule(PEERS.len(), EXPORTS.len()));
    let parsed: Vec<_> = known.iter().map(|rule| rule.parse()).collect();
    check(&[], &Rules::default(), &peers);
    for (first, rule) in known.iter().zip(&parsed) {
        check(&[*first], &Rules(vec![rule.clone()]), &peers);
        let mut rules = Rules(vec![rule.clone(), rule.clone()]);
        for (second, rule) in known.iter().zip(&parsed) {
            rules.0[1] = rule.clone();
            check(&[*first, *second], &rules, &peers);
        }
    }
}

#[test]
fn every_four_rules_about_all_or_some_decide_as_the_model() {
    // The first two rows of each table: everybody and some, every export and some.
    let (peers, known) = (&peers()[1..3], every_rule(2, 1));
    let parsed: Vec<_> = known.iter().map(|rule| rule.parse()).collect();
    let count = known.len();
    for number in 0..count.pow(4) {
        let chosen =
            [number % count, number / count % count, number / count.pow(2) % count, number / count.pow(3)];
        let rules = Rules(chosen.iter().map(|index| parsed[*index].clone()).collect());
        let known = chosen.map(|index| known[index]);
        for (number, peer) in peers.iter().enumerate() {
            assert_eq!(rules.decide(peer, "").right, model(&known, number + 1, 0), "{peer}: {known:?}");
        }
    }
}

proptest! {
    #[test]
    fn long_lists_decide_as_the_model(
        rules in prop::collection::vec((any::<bool>(), 0..3usize, 0..PEERS.len(), 0..EXPORTS.len()), 0..12)
    ) {
        let known: Vec<_> =
            rules.into_iter().map(|(allow, right, peer, export)| Known { allow, right, peer, export }).collect();
        check(&known, &Rules(known.iter().map(|rule| rule.parse()).collect()), &peers());
    }

    #[test]
    fn any_words_are_a_rule_or_an_error(words in "[a-z=,.*:/0-9 ]{0,40}") {
        let _ = Rule::parse(Verdict::Allow, &words);
    }
}

#[test]
fn who_cannot_be_told_is_nobody() {
    let gone = peer(Address::Unknown, Channel::Plain);
    let everybody = Rules(vec![Rule::parse(Verdict::Allow, "right=write").expect("a rule")]);
    assert_eq!(everybody.decide(&gone, "").right, None);
    assert_eq!(Rules::default().decide(&gone, "").right, Some(Right::Write));
}

#[test]
fn a_decision_names_its_rule() {
    let rules = ["cn=backup*,right=read", "tls=off,right=write", "export=scratch"]
        .iter()
        .zip([Verdict::Allow, Verdict::Deny, Verdict::Allow])
        .map(|(words, verdict)| Rule::parse(verdict, words).expect("a rule"))
        .collect::<Vec<_>>();
    let (rules, peers) = (Rules::from(rules), peers());
    let by = |peer: usize, name| {
        rules.decide(&peers[peer], name).by.map(|(number, rule)| (number, rule.to_string()))
    };
    assert_eq!(by(2, "disk-1"), Some((1, "allow cn=backup*,right=read".to_owned())));
    assert_eq!(by(2, "scratch"), Some((3, "allow export=scratch".to_owned())), "the one that gave the most");
    assert_eq!(
        by(0, "scratch"),
        Some((2, "deny tls=off,right=write".to_owned())),
        "the one that refused more"
    );
    assert_eq!(by(3, "disk-1"), None);
}

#[test]
fn a_rule_that_makes_no_sense_is_told_what_to_write() {
    let table = [
        ("", "write right=write"),
        ("uid", "`uid` is not key=value"),
        ("uid=1,,gid=2", "write uid=1000"),
        ("dn=CN=a,O=b", "a comma in a value is written twice"),
        ("user=root", "unknown key `user`"),
        ("uid=0,uid=1", "given twice"),
        ("uid=root", "write uid=1000"),
        ("uid=-1", "write uid=1000"),
        ("cn=", "lacks a value"),
        ("ip=10.0.0.0/33", "write ip=192.0.2.0/24"),
        ("ip=host", "write ip=192.0.2.0/24"),
        ("tls=yes", "write tls=on"),
        ("right=all", "write right=read"),
        ("san=host", "dns:NAME"),
        ("ip=::1,uid=0", "never hold of the same peer"),
        ("uid=0,gid=0,cid=1", "never hold of the same peer"),
        ("cn=a,tls=off", "never hold of the same peer"),
    ];
    for (words, part) in table {
        let error = Rule::parse(Verdict::Allow, words).expect_err(words).to_string();
        assert!(error.contains(part), "{words}: {error}");
    }
}

#[test]
fn addresses_and_networks_are_what_they_say_in_every_form() {
    let table = [
        ("ip=10.1.2.3", true),
        ("ip=10.9.9.9/8", true),
        ("ip=10.1.2.4", false),
        ("ip=::ffff:10.1.2.3", true),
        ("ip=::ffff:10.0.0.0/104", true),
        ("ip=0.0.0.0/0", true),
        ("ip=::/0", false),
    ];
    for (words, holds) in table {
        let rule = Rule::parse(Verdict::Allow, words).expect(words);
        for address in [tcp("10.1.2.3"), tcp("[::ffff:10.1.2.3]")] {
            assert_eq!(rule.peer.fits(&peer(address, Channel::Plain)), holds, "{words}");
        }
    }
}
