use super::*;

fn config(arch: Arch) -> MachineConfig {
    MachineConfig {
        name: "server-1".to_owned(),
        arch,
        memory: 2048,
        cpus: 2,
        accel: Accel::Tcg,
        boot: Boot::Firmware(Firmware { code: "/t/code.fd".into(), vars: "/t/vars.fd".into() }),
        disks: vec![Disk::overlay("/out/server.raw".into(), Format::Raw, None, Bus::VirtioBlk, "root")],
        nics: vec![Nic {
            model: NicModel::Virtio,
            mac: "52:54:00:00:00:01".to_owned(),
            link: Link::User { forward: vec![(2222, 22), (16443, 6443)] },
            netboot: Netboot::Off,
        }],
        credentials: vec![("system.hostname".to_owned(), b"server-1".to_vec())],
        cmdline_extra: Some("console=ttyS0".to_owned()),
        ports: vec!["kiln.ready".to_owned()],
        clock: None,
        no_reboot: true,
        uuid: None,
        screen: false,
        shell: false,
        tpm: None,
    }
}

fn shown(config: &MachineConfig) -> String {
    let places = Places { folder: "/run/a,b".into(), share: "/t/usr/share".into() };
    let mut text = String::new();
    for arg in config.to_args(&places) {
        text.push_str(if arg.starts_with('-') { "\n" } else { " " });
        text.push_str(&arg);
    }
    text
}

#[test]
fn a_pc_has_these_arguments() {
    insta::assert_snapshot!(shown(&config(Arch::Amd64)));
}

#[test]
fn an_arm_machine_with_every_bus_and_card_has_these_arguments() {
    let mut config = config(Arch::Arm64);
    for (bus, serial) in [(Bus::Nvme, "nvme"), (Bus::Ahci, "ahci"), (Bus::UsbStorage, "usb")] {
        config.disks.push(Disk { bus, serial: serial.to_owned(), ..config.disks[0].clone() });
    }
    for (model, mac) in [(NicModel::E1000e, "52:54:00:00:00:02"), (NicModel::Igb, "52:54:00:00:00:03")] {
        config.nics.push(Nic {
            model,
            mac: mac.to_owned(),
            link: Link::Stream("/run/a,b/net".into()),
            netboot: Netboot::Off,
        });
    }
    config.validate().unwrap();
    insta::assert_snapshot!(shown(&config));
}

#[test]
fn a_machine_without_a_system_asks_the_network_first() {
    let mut config = config(Arch::Amd64);
    config.boot = Boot::Bios;
    config.nics[0].netboot = Netboot::Any;
    config.validate().unwrap();
    let args = shown(&config);
    assert!(!args.contains("pflash") && !args.contains("romfile"), "{args}");
    let order = |driver: &str| {
        let place = args.lines().find(|arg| arg.contains(driver)).unwrap();
        place.split("\"bootindex\":").nth(1).unwrap().chars().next().unwrap()
    };
    assert!(order("virtio-net-pci") == '0' && order("virtio-blk-pci") == '1', "{args}");
    config.nics[0].netboot = Netboot::Http;
    assert!(config.validate().unwrap_err().to_string().contains("not by HTTP"));
    config.boot = super::tests::config(Arch::Amd64).boot;
    config.validate().unwrap();
    assert!(shown(&config).contains("-fw_cfg name=opt/org.tianocore/IPv4PXESupport,string=no"));
    assert!(!args.contains("fw_cfg"), "{args}");
    config.disks.clear();
    config.validate().unwrap();
    config.nics[0].netboot = Netboot::Off;
    assert!(config.validate().unwrap_err().to_string().contains("a disk or a network"));
}

#[test]
fn a_machine_with_served_disks_a_screen_and_an_identity_has_these_arguments() {
    let mut config =
        MachineConfig { screen: true, uuid: Some(Uuid::from_u128(0x1234)), ..config(Arch::Amd64) };
    config.disks.clear();
    let buses = [Bus::VirtioBlk, Bus::Nvme, Bus::Ahci, Bus::UsbStorage];
    let sectors = [Sectors::Native512, Sectors::Native4096, Sectors::Emulated512, Sectors::Native4096];
    for (index, (bus, sectors)) in buses.into_iter().zip(sectors).enumerate() {
        let disk = Disk::export(format!("/run/a,b/d{index}.sock").into(), bus, &format!("disk-{index}"));
        config.disks.push(Disk { sectors, ..disk });
    }
    config.validate().unwrap();
    insta::assert_snapshot!(shown(&config));
}

#[test]
fn a_tpm_hangs_where_its_machine_has_a_place_for_it() {
    for (arch, tpm, driver) in [
        (Arch::Amd64, Tpm::Tis, "tpm-tis"),
        (Arch::Amd64, Tpm::Crb, "tpm-crb"),
        (Arch::Arm64, Tpm::Tis, "tpm-tis-device"),
    ] {
        let config = MachineConfig { tpm: Some(tpm), ..config(arch) };
        config.validate().unwrap();
        let args = shown(&config);
        for part in [
            "-chardev socket,id=tpm-control,path=/run/a,,b/tpm.sock",
            "-tpmdev emulator,id=tpm0,chardev=tpm-control",
            &format!("-device {{\"driver\":\"{driver}\",\"tpmdev\":\"tpm0\"}}"),
        ] {
            assert!(args.lines().any(|line| line == part), "{part}\n{args}");
        }
    }
    let config = MachineConfig { tpm: Some(Tpm::Crb), ..config(Arch::Arm64) };
    assert!(config.validate().unwrap_err().to_string().contains("(TIS) only"));
}

#[test]
fn impossible_machines_are_refused_with_the_reason() {
    type Spoil = fn(&mut MachineConfig);
    let table: [(Spoil, &str); 10] = [
        (|c| c.name = "a b".to_owned(), "the name may hold"),
        (|c| c.memory = 64, "64 MiB of memory"),
        (|c| c.cpus = 0, "0 CPUs"),
        (|c| c.disks[0].serial = "x".repeat(21), "disk serial"),
        (
            |c| c.disks[0] = Disk { bus: Bus::Ahci, sectors: Sectors::Native4096, ..c.disks[0].clone() },
            "logical sectors of 4096 bytes",
        ),
        (|c| c.disks.push(c.disks[0].clone()), "two disks have the serial `root`"),
        (|c| c.nics[0].mac = "52:54".to_owned(), "`52:54` is no hardware address"),
        (|c| c.nics.push(c.nics[0].clone()), "two network cards"),
        (|c| c.credentials[0].0 = "a=b".to_owned(), "credential name `a=b`"),
        (|c| c.disks.clear(), "firmware needs a disk"),
    ];
    config(Arch::Amd64).validate().unwrap();
    for (spoil, reason) in table {
        let mut config = config(Arch::Amd64);
        spoil(&mut config);
        let failure = config.validate().unwrap_err().to_string();
        assert!(failure.contains(reason), "{failure} / {reason}");
    }
}

#[test]
fn a_translated_pc_is_told_to_trust_its_timers_and_nothing_else_is() {
    let words = |arch, accel| {
        let config = MachineConfig { accel, cmdline_extra: None, credentials: Vec::new(), ..config(arch) };
        config.smbios_strings()
    };
    let trust = "no_timer_check tsc=reliable";
    assert_eq!(words(Arch::Amd64, Accel::Tcg), [format!("io.systemd.stub.kernel-cmdline-extra={trust}")]);
    assert_eq!(words(Arch::Amd64, Accel::Kvm), [""; 0]);
    assert_eq!(words(Arch::Arm64, Accel::Tcg), [""; 0]);
    let both = config(Arch::Amd64).smbios_strings();
    assert!(both.last().unwrap().ends_with(&format!("=console=ttyS0 {trust}")), "{both:?}");
}

#[test]
fn base64_matches_rfc_4648_section_10() {
    let table = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
    for (length, expected) in table.iter().enumerate() {
        assert_eq!(base64(&b"foobar"[..length]), *expected);
    }
}
