//! A guest's parts, and QEMU's command line for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
use std::{env, process};

use crate::console::Console;
use crate::error::{Error, Result};
use crate::job::Link;
use crate::process::Process;
use crate::{Disk, Guest, ImageSpec, Qemu, Snapshot, assets};

/// Two seconds suffice for a boot under emulation on an idle machine; test machines are not idle.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(180);

/// A whole Debian takes twenty times as long.
const SYSTEM_TIMEOUT: Duration = Duration::from_secs(400);

/// Bound on the starts of a guest whose QEMU meets the defect that is known.
const BOOTS: u32 = 3;

/// Builder of a guest.
#[derive(Debug, Clone)]
pub struct GuestBuilder {
    emulator: Qemu,
    memory_mib: u32,
    processors: u32,
    disks: Vec<Disk>,
    slots: Vec<String>,
    image: Option<ImageSpec>,
    script: Option<String>,
    reboots: bool,
    kernel_words: Vec<String>,
    arguments: Vec<String>,
    documented: Vec<String>,
    boot_timeout: Duration,
    command_timeout: Duration,
}

impl Default for GuestBuilder {
    fn default() -> Self {
        Self {
            emulator: Qemu::System,
            memory_mib: 256,
            processors: 1,
            disks: Vec::new(),
            slots: Vec::new(),
            image: None,
            script: None,
            reboots: false,
            kernel_words: Vec::new(),
            arguments: Vec::new(),
            documented: Vec::new(),
            boot_timeout: BOOT_TIMEOUT,
            command_timeout: COMMAND_TIMEOUT,
        }
    }
}

impl GuestBuilder {
    /// Makes a guest with 256 MiB shared memory, one processor, no disk and the standard image.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs the guest in this QEMU instead of the system's.
    #[must_use]
    pub fn emulator(mut self, emulator: Qemu) -> Self {
        self.emulator = emulator;
        self
    }

    /// Sets the memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    /// Sets the number of processors. QEMU gives each disk of a vhost-user back end as many queues.
    #[must_use]
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Adds a disk: `/dev/vda`, `/dev/vdb` and so on in the order of adding.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Adds a slot that a device can be unplugged from and plugged into while the guest runs:
    /// `bus=NAME` puts it there.
    #[must_use]
    pub fn slot(mut self, name: &str) -> Self {
        self.slots.push(name.to_owned());
        self
    }

    /// Boots the [`System`](crate::System) on the first disk, which is added here: `/dev/vda`.
    #[must_use]
    pub fn system(mut self, disk: &Path) -> Self {
        self.disks.insert(0, Disk::file(disk, "system"));
        let guest = self.image(ImageSpec::minimal()).kernel_word("system=/dev/vda");
        // A slow boot would report to the console, between what the host parses.
        guest.kernel_word("systemd.show_status=false").boot_timeout(SYSTEM_TIMEOUT)
    }

    /// Uses this image instead of [`ImageSpec::standard`].
    #[must_use]
    pub fn image(mut self, image: ImageSpec) -> Self {
        self.image = Some(image);
        self
    }

    /// Lets the guest run this script of its image and power off: see [`Guest::follow_script`].
    #[must_use]
    pub fn script(mut self, name: &str) -> Self {
        self.script = Some(name.to_owned());
        self
    }

    /// Lets a reboot boot again. Without this, a reboot (and a panic) ends QEMU.
    #[must_use]
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Adds a word to the kernel's command line.
    #[must_use]
    pub fn kernel_word(mut self, word: &str) -> Self {
        self.kernel_words.push(word.to_owned());
        self
    }

    /// Puts an IOMMU before the guest's devices.
    #[must_use]
    pub fn iommu(self) -> Self {
        self.arguments(["-machine", "kernel-irqchip=split"])
            .arguments(["-device", "intel-iommu,caching-mode=on,intremap=on"])
            .kernel_word("intel_iommu=on")
    }

    /// Adds arguments to QEMU's command line.
    #[must_use]
    pub fn arguments<I: Into<String>>(mut self, more: impl IntoIterator<Item = I>) -> Self {
        self.arguments.extend(more.into_iter().map(Into::into));
        self
    }

    /// Adds the arguments of a documented command line, which make the memory's backend, and more
    /// disks behind those that were added.
    #[must_use]
    pub fn documented<I: Into<String>>(mut self, all: impl IntoIterator<Item = I>) -> Self {
        self.documented.extend(all.into_iter().map(Into::into));
        self
    }

    /// Sets the bound on a boot.
    #[must_use]
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Sets the bound on a command of [`Guest::run`].
    #[must_use]
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Builds the image if need be, starts QEMU, and waits until the guest listens (with a script:
    /// until that begins).
    ///
    /// A QEMU that meets a defect of its own before that is started again: while an emulated guest
    /// sets up its devices, the write to one of them can meet what another one was before. Seen
    /// once each: QEMU 10.0 aborted by its assertions in `msix_table_mmio_write` and, with several
    /// processors, in `iotlb_to_section`, and QEMU 7.2 by SIGSEGV in
    /// `memory_region_dispatch_write`. No other end is repeated.
    pub fn boot(self) -> Result<Guest> {
        let first_word = if self.script.is_some() { "script>>\n" } else { "ready>>\n" };
        self.begin_until(|guest| guest.wait_for_boot(first_word))
    }

    /// Starts QEMU, and calls `wait`, which waits for something in the guest's boot. Repeats that as
    /// [`boot`](Self::boot) does.
    pub fn begin_until(self, wait: impl Fn(&Guest) -> Result<()>) -> Result<Guest> {
        let mut starts = 1;
        loop {
            let mut guest = self.clone().begin()?;
            match wait(&guest) {
                Ok(()) => return Ok(guest),
                Err(error) if starts < BOOTS && (error.is_known_abort() || guest.has_crashed()) => {
                    eprintln!("started again: {error}");
                    starts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts QEMU and waits for nothing: the guest may hang in its boot.
    pub fn begin(self) -> Result<Guest> {
        self.start(nonce(), 0)
    }

    /// Starts QEMU with a guest that was saved; the builder must be as the one that has booted it.
    /// Jobs from before the snapshot report to nobody but [`Guest::adopt`].
    pub fn resume(self, snapshot: &Snapshot) -> Result<Guest> {
        let incoming = format!("exec:cat '{}'", snapshot.file.display());
        let builder = self.arguments(["-incoming".to_owned(), incoming]);
        // Numbers that no life of the guest has used.
        let mut guest = builder.start(snapshot.nonce.clone(), snapshot.jobs + 1000)?;
        guest.run_restored()?;
        Ok(guest)
    }

    /// Starts another QEMU while the guest of `source`, which this builder has booted, runs, and
    /// migrates the guest there. It is paused in `source` then.
    ///
    /// An emulated guest is paused before, for the reason that [`Guest::save`] gives.
    pub fn migrate(self, source: &Guest) -> Result<Guest> {
        let address = source.incoming();
        let (nonce, jobs) = source.state();
        let builder = self.arguments(["-incoming".to_owned(), address.clone()]);
        // Numbers that the guest has not used.
        let mut guest = builder.start(nonce, jobs + 1000)?;
        guest.wait_for_status("query-status", "inmigrate")?;
        source.migrate_to(&address)?;
        guest.run_restored()?;
        Ok(guest)
    }

    /// Returns kernel, initramfs and the kernel's command line, for another program that starts the
    /// guest.
    pub fn kernel(&self) -> Result<(PathBuf, PathBuf, String)> {
        let image = self.image.as_ref().map_or_else(ImageSpec::standard, |own| Ok(own.clone()))?;
        Ok((assets::kernel()?, image.build()?, self.kernel_line(&nonce())))
    }

    fn start(self, nonce: String, jobs: u32) -> Result<Guest> {
        let image = self.image.as_ref().map_or_else(ImageSpec::standard, |own| Ok(own.clone()))?;
        let image = image.build()?;
        let folder = tempfile::Builder::new().prefix("blockring-guest-").tempdir();
        let folder = folder.map_err(Error::io("making a temporary folder"))?;
        let qmp = folder.path().join("qmp.socket");
        let qemu_log = folder.path().join("qemu.log");
        let log = File::create(&qemu_log).map_err(Error::file("creating", &qemu_log))?;
        let mut command = Command::new(self.emulator.program()?);
        command
            .args(self.command_line(&assets::kernel()?, &image, &nonce, &qmp))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut process = Process::spawn(command)?;
        let (Some(input), Some(output)) = (process.child.stdin.take(), process.child.stdout.take())
        else {
            unreachable!("both were asked for above");
        };
        let link = Link::new(Console::follow(output, qemu_log), input, nonce, jobs);
        Ok(Guest::new(process, link, folder, self.boot_timeout, self.command_timeout))
    }

    fn command_line(&self, kernel: &Path, image: &Path, nonce: &str, qmp: &Path) -> Vec<String> {
        let memory = self.memory_mib;
        let options = [
            ("-machine", "q35".to_owned()),
            ("-m", format!("{memory}M")),
            ("-smp", self.processors.to_string()),
            ("-chardev", "stdio,id=console,signal=off".to_owned()),
            ("-serial", "chardev:console".to_owned()),
            ("-qmp", format!("unix:{},server=on,wait=off", qmp.display())),
            ("-display", "none".to_owned()),
            ("-kernel", kernel.display().to_string()),
            ("-initrd", image.display().to_string()),
            ("-append", self.kernel_line(nonce)),
        ];
        let mut arguments: Vec<String> =
            options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
        arguments.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        if self.documented.is_empty() {
            // vhost-user needs guest memory that the back end can map.
            let object = format!("memory-backend-memfd,id=mem,size={memory}M,share=on");
            arguments
                .extend(["-object", &object, "-machine", "memory-backend=mem"].map(str::to_owned));
        }
        if !self.reboots {
            arguments.push("-no-reboot".to_owned());
        }
        arguments.extend(accelerator());
        for (number, name) in (1..).zip(&self.slots) {
            let port = format!("pcie-root-port,id={name},chassis={number}");
            arguments.extend(["-device".to_owned(), port]);
        }
        // In front of the disks, which may lie on a bus that these make.
        arguments.extend_from_slice(&self.arguments);
        for (index, disk) in self.disks.iter().enumerate() {
            arguments.extend(disk.arguments(index));
        }
        arguments.extend_from_slice(&self.documented);
        arguments
    }

    fn kernel_line(&self, nonce: &str) -> String {
        // A panic reboots at once, which ends QEMU unless reboots are allowed. The kernel's check
        // that the timer ticks is left out: on a busy host it fails, which is a panic. So are those
        // of its ciphers, which take a tenth of an emulated boot.
        let mut line = format!(
            "console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check cryptomgr.notests nonce={nonce}"
        );
        if let Some(name) = &self.script {
            line.push_str(" script=");
            line.push_str(name);
        }
        for word in &self.kernel_words {
            line.push(' ');
            line.push_str(word);
        }
        line
    }
}

/// `BLOCKRING_ACCEL`, or KVM where the processor has it, or emulation.
fn accelerator() -> [String; 4] {
    let chosen = env::var("BLOCKRING_ACCEL").unwrap_or_else(|_| {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let virtual_machines = cpuinfo.split_whitespace().any(|word| matches!(word, "vmx" | "svm"));
        let kvm =
            virtual_machines && File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if kvm { "kvm" } else { "tcg,thread=multi" }.to_owned()
    });
    // Without `max` an emulated guest has no random numbers at boot.
    let processor = if chosen.starts_with("kvm") { "host" } else { "max" };
    ["-accel", &chosen, "-cpu", processor].map(str::to_owned)
}

/// Differs between the guests of one machine, so that no output is taken for a word of `/init`.
fn nonce() -> String {
    static GUESTS: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let number = GUESTS.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{number}", process::id(), now.subsec_nanos())
}
