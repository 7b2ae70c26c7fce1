//! The shell of `kiln test attach`: root's, on a virtio console, and only in a run that is to be kept.

/// The unit. A virtio console is a terminal in the guest (/dev/hvc0), so that line editing and Ctrl-C work there.
const UNIT: &str = "[Unit]
Description=Shell for kiln test attach
DefaultDependencies=no
After=var.mount
[Service]
ExecStart=-/bin/sh -l
WorkingDirectory=/
Environment=HOME=/root TERM=vt220 PS1=%H#\\x20
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/hvc0
TTYReset=yes
UtmpIdentifier=hvc0
Restart=always
RestartSec=1
StartLimitIntervalSec=0
";

const DROPIN: &str = "[Unit]
Wants=kiln-shell.service
";

/// The credentials that bring the shell.
pub(super) fn credentials() -> Vec<(String, Vec<u8>)> {
    [
        ("systemd.extra-unit.kiln-shell.service", UNIT),
        ("systemd.unit-dropin.multi-user.target~kiln-shell", DROPIN),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .to_vec()
}
