//! What a server's handshake is told: the greeting, TLS, limits.

/// Which greeting the server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Style {
    /// Fixed newstyle: options, each with a reply.
    #[default]
    Fixed,
    /// One export, no options.
    Oldstyle,
}

/// Whether the channel can, or must, become encrypted (specification, "TLS support").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Tls {
    /// NOTLS.
    #[default]
    Off,
    /// SELECTIVETLS: exports may need it ([`Lookup::TlsRequired`](crate::proto::Lookup::TlsRequired)).
    On {
        /// Before TLS, what is not there looks like an export that needs it.
        hides_unknown: bool,
    },
    /// FORCEDTLS: nothing is answered without it.
    Required,
}

/// Limits of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeConfig {
    /// Which greeting.
    pub style: Style,
    /// Whether TLS is offered. There is none with the oldstyle greeting.
    pub tls: Tls,
    /// Options of one client before it is disconnected. A client may ask twice about each of
    /// many exports, so this is generous.
    pub options_max: u32,
    /// Announced length of an option, in bytes, beyond which the client is disconnected.
    pub option_length_max: u32,
    /// Longest option payload, in bytes, that is kept to be answered; a longer one is dropped and
    /// answered TOO_BIG.
    pub option_kept_max: u32,
    /// Longest export name, in bytes.
    pub name_length_max: u32,
}

impl Default for HandshakeConfig {
    fn default() -> Self {
        Self {
            style: Style::Fixed,
            tls: Tls::Off,
            options_max: 4096,
            option_length_max: 32 << 20,
            option_kept_max: 64 << 10,
            name_length_max: 4096,
        }
    }
}
