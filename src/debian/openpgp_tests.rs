use super::*;
use proptest::prelude::*;

/// 2026-02-10: ten days after the texts of the fixtures were signed.
const NOW: i64 = 1_770_681_600;
const DAY: i64 = 86_400;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/openpgp/{name}", env!("CARGO_MANIFEST_DIR"));
    fs_err::read(path).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(fixture(&format!("{name}.InRelease"))).unwrap()
}

/// The keys of the file, pinned by whatever fingerprints they have.
fn keys(name: &str) -> PinnedKeys {
    let file = fixture(&format!("{name}.asc"));
    let found: Vec<SignedPublicKey> =
        SignedPublicKey::from_reader_many_buf(&file[..]).unwrap().0.map(Result::unwrap).collect();
    let prints: Vec<Fingerprint> = found.iter().map(|k| fingerprint(&k.primary_key)).collect();
    PinnedKeys::read(&file, &prints).unwrap()
}

fn refusal(name: &str, key: &str, now: i64) -> String {
    verify(text(name).as_bytes(), &keys(key), now).unwrap_err().to_string()
}

#[test]
fn a_good_signature_gives_the_release_its_signer_and_the_digest_of_the_file() {
    let file = text("good");
    let verified = verify(file.as_bytes(), &keys("good"), NOW).unwrap();
    assert_eq!(verified.release().codename, "demo");
    assert_eq!(verified.release().files.len(), 1);
    assert_eq!(verified.signers(), [fingerprint(&keys("good").0[0].primary_key)]);
    assert_eq!(verified.digest(), Digest::of(file.as_bytes()));
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let verified = verify(text("two").as_bytes(), &keys("good"), NOW).unwrap();
    assert_eq!(verified.signers().len(), 1);
    let mut both = keys("good");
    both.extend(keys("other"));
    assert_eq!(verify(text("two").as_bytes(), &both, NOW).unwrap().signers().len(), 2);
}

#[test]
fn each_rule_refuses_what_breaks_it() {
    for (name, key, reason) in [
        ("other", "good", "is by no pinned key"),
        ("sha1", "good", "uses SHA1, at least SHA256"),
        ("sigexpired", "good", "it expired at 2026-02-11 00:00:00 UTC"),
        ("future", "good", "it is of the future"),
        ("expired", "expired", "expired at 2026-01-11 00:00:00 UTC"),
        ("subexpired", "subexpired", "expired at 2026-01-11 00:00:00 UTC"),
        ("weak", "weak", "RSA of 1024 bits"),
        ("revoked", "revoked", "is revoked"),
        ("subrevoked", "subrevoked", "the subkey"),
        ("noflag", "noflag", "is not marked for signing"),
        ("subnoflag", "subnoflag", "is not marked for signing"),
    ] {
        // A day after the tenth, so that the signature of ten days is over.
        let error = refusal(name, key, NOW + 2 * DAY);
        assert!(
            error.starts_with("no good signature by a pinned key") && error.contains(reason),
            "{name}: {error}"
        );
    }
    assert!(refusal("subrevoked", "subrevoked", NOW).contains("is revoked"));
}

#[test]
fn what_is_refused_today_was_good_while_it_was_valid() {
    // So the refusals above are about time, and about nothing else in those fixtures.
    for (name, key, now) in [
        ("sigexpired", "good", NOW - DAY),
        ("expired", "expired", 1_768_089_600 - DAY),
        ("subexpired", "subexpired", 1_768_089_600 - DAY),
    ] {
        let result = verify(text(name).as_bytes(), &keys(key), now);
        // The text of the last two is dated in February, which is what stops them now.
        assert!(!matches!(result, Err(VerifyError::NoGoodSignature(_))), "{name}: {result:?}");
    }
}

#[test]
fn a_changed_text_is_refused_and_a_changed_blank_at_a_line_end_is_not() {
    let file = text("good");
    let tampered = file.replace("e3b0c44298", "e3b0c44299");
    let error = verify(tampered.as_bytes(), &keys("good"), NOW).unwrap_err().to_string();
    assert!(error.contains("it does not fit the text"), "{error}");
    // RFC 9580, 7.2: blanks at line ends are not signed, so they must not be read either.
    let blank = file.replace("Codename: demo\n", "Codename: demo \t\n");
    assert_eq!(verify(blank.as_bytes(), &keys("good"), NOW).unwrap().release().codename, "demo");
}

#[test]
fn text_before_behind_and_between_is_refused() {
    let file = text("good");
    let twice = format!("{file}{file}");
    let inner =
        file.replace("-----BEGIN PGP SIGNATURE-----", "Codename: evil\n-----BEGIN PGP SIGNATURE-----");
    for (bad, reason) in [
        (format!("Codename: evil\n{file}"), "does not start with"),
        (format!("\n{file}"), "does not start with"),
        (format!("{file}Codename: evil\n"), "does not end with"),
        (twice, "does not end with"),
        (inner, "does not fit the text"),
        (file.replace("Hash: SHA256", "Hash: SHA256\nComment: x"), "cannot be read"),
        (file[..200].to_owned(), "does not end with"),
        (String::new(), "does not start with"),
    ] {
        let error = verify(bad.as_bytes(), &keys("good"), NOW).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    // A key as a message, and bytes that are no text.
    assert!(verify(&fixture("good.asc"), &keys("good"), NOW).is_err());
    assert!(verify(b"\xff\xfe", &keys("good"), NOW).unwrap_err().to_string().contains("UTF-8"));
    assert!(
        verify(format!("{file}\n \n").as_bytes(), &keys("good"), NOW).is_ok(),
        "blank lines hide nothing"
    );
}

#[test]
fn the_release_is_refused_before_and_after_its_time() {
    // Valid-Until of the fixtures: 2026-03-01.
    assert!(verify(text("good").as_bytes(), &keys("good"), 1_772_323_200).is_ok());
    let late = verify(text("good").as_bytes(), &keys("good"), 1_772_323_201).unwrap_err();
    assert!(matches!(late, VerifyError::Expired { until: 1_772_323_200, .. }), "{late}");
    // Signed on the 5th of January, dated the 1st of February.
    let early = verify(text("expired").as_bytes(), &keys("expired"), 1_767_700_000).unwrap_err();
    assert!(matches!(early, VerifyError::Future { .. }), "{early}");
}

#[test]
fn a_subkey_without_its_binding_back_does_not_count() {
    let mut pinned = keys("good");
    assert!(verify(text("good").as_bytes(), &pinned, NOW).is_ok());
    for signature in &mut pinned.0[0].public_subkeys[0].signatures {
        let unhashed = signature.config().unwrap().unhashed_subpackets.len();
        for at in (0..unhashed).rev() {
            let kept = &signature.config().unwrap().unhashed_subpackets[at].data;
            if matches!(kept, pgp::packet::SubpacketData::EmbeddedSignature(_)) {
                signature.unhashed_subpacket_remove(at).unwrap();
            }
        }
    }
    let error = verify(text("good").as_bytes(), &pinned, NOW).unwrap_err().to_string();
    assert!(error.contains("has not signed that it belongs"), "{error}");
}

#[test]
fn a_binding_back_by_some_other_subkey_does_not_count() {
    use pgp::packet::{Subpacket, SubpacketData};
    let foreign = keys("subrevoked").0[0].public_subkeys[0]
        .signatures
        .iter()
        .find_map(|s| s.embedded_signature().cloned())
        .unwrap();
    let mut pinned = keys("good");
    for signature in &mut pinned.0[0].public_subkeys[0].signatures {
        for at in (0..signature.config().unwrap().unhashed_subpackets.len()).rev() {
            let data = &signature.config().unwrap().unhashed_subpackets[at].data;
            if matches!(data, SubpacketData::EmbeddedSignature(_)) {
                signature.unhashed_subpacket_remove(at).unwrap();
                let swapped = SubpacketData::EmbeddedSignature(Box::new(foreign.clone()));
                signature.unhashed_subpacket_insert(at, Subpacket::regular(swapped).unwrap()).unwrap();
            }
        }
    }
    let error = verify(text("good").as_bytes(), &pinned, NOW).unwrap_err().to_string();
    assert!(error.contains("has not signed that it belongs"), "{error}");
}

#[test]
fn a_subkey_that_another_key_adopts_does_not_count() {
    let mut thief = keys("other");
    thief.0[0].public_subkeys = keys("good").0[0].public_subkeys.clone();
    let error = verify(text("good").as_bytes(), &thief, NOW).unwrap_err().to_string();
    assert!(error.contains("is not bound to its primary key"), "{error}");
}

#[test]
fn only_the_keys_that_are_named_are_read() {
    let file = fixture("good.asc");
    let print = fingerprint(&keys("good").0[0].primary_key);
    let other: Fingerprint = "0000000000000000000000000000000000000000".parse().unwrap();
    assert!(PinnedKeys::read(&file, std::slice::from_ref(&print)).is_ok());
    assert_eq!(PinnedKeys::read(&file, &[]).unwrap_err(), KeyError::NotPinned(print.clone()));
    assert_eq!(PinnedKeys::read(&file, &[print, other.clone()]).unwrap_err(), KeyError::Missing(other));
    assert!(matches!(PinnedKeys::read(b"", &[]), Err(KeyError::Unreadable(_))));
    assert!("abc".parse::<Fingerprint>().is_err());
}

#[test]
fn the_keys_of_debian_13_are_the_ones_that_the_readme_names() {
    let folder = format!("{}/images/keys", env!("CARGO_MANIFEST_DIR"));
    let readme = fs_err::read_to_string(format!("{folder}/README")).unwrap();
    for (name, print) in [
        ("automatic", "04B54C3CDCA79751B16BC6B5225629DF75B188BD"),
        ("security-automatic", "5E04A1E3223A19A20706E20F9904613D4CCE68C6"),
        ("stable", "41587F7DB8C774BCCF131416762F67A0B2C39DE4"),
    ] {
        let file = fs_err::read(format!("{folder}/debian-archive-trixie-{name}.asc")).unwrap();
        let keys = PinnedKeys::read(&file, &[print.parse().unwrap()]).unwrap();
        let key = &keys.0[0];
        // Third parties have certified these keys, which must not disturb; 2026-11-22 is within their time.
        assert_eq!(check_key(key, key.public_subkeys.first(), 1_795_305_600), Ok(()), "{name}");
        assert!(readme.replace(' ', "").contains(print), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn never_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (mut file, mut key) = (fixture("good.InRelease"), fixture("good.asc"));
        for (at, byte) in changes {
            let (in_file, in_key) = (at.index(file.len()), at.index(key.len()));
            file[in_file] = byte;
            key[in_key] = byte;
        }
        let _ = verify(&file, &keys("good"), NOW);
        let _ = PinnedKeys::read(&key, &[]);
    }
}
