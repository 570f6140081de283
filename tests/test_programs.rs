//! Each file of tests belongs to a test program: where cargo does not look for them itself, one
//! that is forgotten would be run by nobody.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

#[test]
fn each_file_of_tests_is_run() {
    for package in ["", "cli", "vhost"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(package);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("\nautotests = false\n"), "{package}");
        let main = fs::read_to_string(folder.join("tests/main.rs")).unwrap();
        for entry in fs::read_dir(folder.join("tests")).unwrap() {
            let path = entry.unwrap().path();
            let is_test = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").exists()
                || path.join("mod.rs").exists();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_run = main.contains(&format!("\nmod {name};\n"))
                || manifest.contains(&format!("[[test]]\nname = \"{name}\"\n"));
            assert!(!is_test || is_run || name == "main", "{} is not run", path.display());
        }
    }
}
