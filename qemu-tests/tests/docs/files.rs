//! Configuration files: where a reader saves them, and which program reads them.

use crate::page::Block;
use qemu_tests::binaries;
use std::path::Path;

/// Returns where a file goes of which no note says that: a unit of systemd where its first line
/// says.
pub fn default_path(block: &Block) -> String {
    let first = block.text.lines().next().unwrap_or_default();
    let units = "/etc/systemd/system";
    if let Some(unit) = first.strip_prefix("# systemctl edit ") {
        return format!("{units}/{unit}.d/override.conf");
    }
    if block.language == "ini" {
        let name = first.strip_prefix("# ").unwrap_or_else(|| {
            panic!("{}: the first line of a unit is a comment with its name", block.place)
        });
        return format!("{units}/{name}");
    }
    let line = block.place.rsplit(':').next().unwrap_or_default();
    format!("block-{line}.{}", block.language)
}

/// Checks a configuration file, or returns the command that does.
pub fn check(place: &str, kind: &str, path: &Path, text: &str) -> Option<String> {
    let file = path.display();
    match kind {
        "toml" if text.contains("blk-file =") => {
            Some(format!("vhost-device-blockring --check-config --config {file}"))
        }
        "toml" => Some(format!("blockring forward --check-config --config {file}")),
        "ini" | "service" | "socket" => Some(verify_unit(path)),
        "yaml" => Some(format!("promtool check config {file}")),
        "json" => {
            let mut count = 0;
            let values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
            for value in values {
                value.unwrap_or_else(|e| panic!("{place}: {e}"));
                count += 1;
            }
            assert!(count > 0, "{place}: empty");
            None
        }
        "xml" => {
            roxmltree::Document::parse(text).unwrap_or_else(|e| panic!("{place}: {e}"));
            None
        }
        "sh" => Some(format!("bash -n {file}")),
        "c" => {
            let headers = binaries::workspace().join("capi/include");
            let compile = "cc -std=c11 -Wall -Wextra -Werror -fsyntax-only";
            Some(format!("{compile} -I {} {file}", headers.display()))
        }
        "py" => Some(format!("python3 -c 'import ast; ast.parse(open(\"{file}\").read())'")),
        "text" => None,
        _ => panic!("{place}: no program is known that reads this kind of file"),
    }
}

/// Returns the command by which systemd reads a unit, and says nothing if all is well.
fn verify_unit(path: &Path) -> String {
    let folder = path.parent().unwrap_or(path).display().to_string();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A drop-in is read with its unit.
    let unit = folder.strip_suffix(".d").map_or(name, |folder| {
        Path::new(folder).file_name().unwrap_or_default().to_string_lossy().into_owned()
    });
    let unit = unit.replace("@.", "@web.");
    format!("[ -z \"$(systemd-analyze verify --man=no {unit} 2>&1 | tee /dev/stderr)\" ]")
}
