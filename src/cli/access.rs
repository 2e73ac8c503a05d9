//! `--allow` and `--deny`: one list, in the order of the command line.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::server::{Rule, Rules, Verdict};

/// What [`Rule::parse`] takes, for `--help`.
pub(super) const RULES: &str = "\
Rules of --allow and --deny, key=value[,key=value...]; in order, the first that
speaks about a right decides; without any rule everybody may do everything, with
rules what none allows is denied. All keys of a rule must hold; a comma in a
value is written twice; in patterns * is any characters, ? is one:
  cn=PATTERN         a common name of the client's certificate
  dn=PATTERN         its distinguished name, such as CN=backup,,O=Example
  san=PATTERN        an alternative name: dns:NAME, ip:ADDRESS, email:ADDRESS or
                     uri:URI
  issuer=PATTERN     the distinguished name of who signed it
  ip=ADDRESS[/BITS]  TCP from there
  uid=N, gid=N       a unix socket, of a process with this user or main group
  cid=N              vsock, from this context
  tls=on|off         came by TLS, or not
  export=PATTERN     the name of the export; empty is the default one
  right=RIGHT        list, read or write, each with those before it: --allow
                     gives up to this one (write if left out), --deny refuses
                     from this one on (list if left out)
An export that a peer may not list is not there for it; one that it may list and
not read cannot be opened; one that it may read and not write is read-only.
";

/// The list of rules.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) rules: Rules,
}

/// An option for each verdict. `index` orders what the two of them were given.
const OPTIONS: [(&str, Verdict, &str); 2] = [
    (
        "allow",
        Verdict::Allow,
        "Let these peers see, read or write these exports; may be repeated (all about rules: --help)",
    ),
    (
        "deny",
        Verdict::Deny,
        "Keep these peers from seeing, reading or writing these exports; may be repeated",
    ),
];

impl Args for Access {
    fn augment_args(command: Command) -> Command {
        OPTIONS.into_iter().fold(command, |command, (name, verdict, help)| {
            command.arg(
                Arg::new(name)
                    .long(name)
                    .value_name("RULE")
                    .action(ArgAction::Append)
                    .value_parser(move |text: &str| Rule::parse(verdict, text))
                    .help_heading("Access")
                    .help(help),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Access {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given: Vec<(usize, Rule)> = Vec::new();
        for (name, ..) in OPTIONS {
            let indices = matches.indices_of(name).into_iter().flatten();
            let rules = matches.get_many::<Rule>(name).into_iter().flatten();
            given.extend(indices.zip(rules.cloned()));
        }
        given.sort_by_key(|(index, _)| *index);
        Ok(Self { rules: given.into_iter().map(|(_, rule)| rule).collect::<Vec<_>>().into() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        access: Access,
    }

    #[test]
    fn rules_keep_the_order_of_the_command_line() {
        let given = ["x", "--deny", "uid=1", "--allow", "uid=2", "--allow=uid=3", "--deny", "right=write"];
        let words = Words::try_parse_from(given).expect("parses");
        let expected = [
            (Verdict::Deny, "uid=1"),
            (Verdict::Allow, "uid=2"),
            (Verdict::Allow, "uid=3"),
            (Verdict::Deny, "right=write"),
        ];
        let expected = expected.map(|(verdict, text)| Rule::parse(verdict, text).expect("a rule"));
        assert_eq!(words.access.rules, Rules::from(expected.to_vec()));
        assert!(Words::try_parse_from(["x"]).expect("parses").access.rules.is_empty());
    }
}
