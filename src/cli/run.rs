//! `--run`: a command that lives with the server and learns from its environment how to reach it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::net::listen::{Listen, Listener};

/// What the command's environment says about the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Environment {
    /// `$uri`: the first listener, the default export or else the first.
    uri: String,
    /// `$unixsocket`: the first unix listener's absolute path, or empty.
    unixsocket: String,
    /// `$port`: the first TCP or vsock listener's port, or empty.
    port: String,
}

impl Environment {
    pub(super) fn of(listeners: &[Listener], uri: impl Fn(&Listener) -> String) -> Self {
        let uri = listeners.first().map(uri).unwrap_or_default();
        let (mut unixsocket, mut port) = (None, None);
        for listener in listeners {
            match &listener.bound {
                Listen::Unix(path) => unixsocket = unixsocket.or_else(|| Some(absolute(path))),
                Listen::Tcp { port: bound, .. } => port = port.or_else(|| Some(bound.to_string())),
                Listen::Vsock { port: bound, .. } => port = port.or_else(|| Some(bound.to_string())),
            }
        }
        Self { uri, unixsocket: unixsocket.unwrap_or_default(), port: port.unwrap_or_default() }
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// Starts `command` with the shell. It gets the server's standard streams, but not the sockets and
/// the notification address that the server itself was started with.
pub(super) fn start(command: &str, environment: &Environment) -> io::Result<Child> {
    Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("uri", &environment.uri)
        .env("unixsocket", &environment.unixsocket)
        .env("port", &environment.port)
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::inherit())
        .spawn()
}

/// The exit code that stands for the command's end: its own, or as shells do 128 and the signal.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_finds_the_server_and_its_code_is_kept() {
        let listeners = Listen::parse("127.0.0.1:0").expect("parses").bind(1).expect("binds");
        let environment = Environment::of(&listeners, |listener| listener.uri("a b"));
        let check = format!(
            "test \"$uri\" = 'nbd://127.0.0.1:{0}/a%20b' && test $port = {0} || exit 1; test -z \"$unixsocket\" && exit 7",
            environment.port
        );
        let status = start(&check, &environment).and_then(|mut child| child.wait()).expect("has a shell");
        assert_eq!(exit_code(status), 7);
        let killed =
            start("kill -TERM $$", &environment).and_then(|mut child| child.wait()).expect("has a shell");
        assert_eq!(exit_code(killed), 128 + 15);
    }
}
