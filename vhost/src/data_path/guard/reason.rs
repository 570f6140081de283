//! The reasons for which requests are refused.

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A write of other bytes to sector 0.
    Signature,
    /// A write of other bytes to the host's pointer sector.
    HostPointer,
    /// A refused change of a control sector as part of a write of the whole first page: most often
    /// a program in the guest writes through the page cache (without `O_DIRECT`).
    BufferedPage,
    /// A position in front of the current one.
    PointerBackwards,
    /// A position beyond what the ring can hold (producer) or what is published (consumer).
    PointerBeyond,
    /// A position that is not a multiple of 4.
    PointerMisaligned,
    /// A flag other than 1 or 2.
    PointerFlag,
    /// A pointer sector whose slots no correct writer leaves like that.
    PointerExtension,
    /// A slot with a wrong number of items.
    ItemCount,
    /// A new position where no item ends.
    ItemFraming,
    /// A write that changes published bytes.
    PublishedData,
    /// A change of data by a guest that is the consumer.
    ForeignData,
    /// A host's pointer that contradicts the guest's: nothing can be judged until it is repaired.
    HostCorrupt,
    /// A write to a read-only disk.
    ReadOnly,
    /// A range beyond the end of the device, or not of whole sectors.
    OutOfRange,
    /// A descriptor chain that is no block request.
    Malformed,
    /// A request larger than the device allows.
    TooLarge,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Reason {
    /// All reasons, in the order of [`Reason::index`].
    pub const ALL: [Self; 17] = [
        Self::Signature,
        Self::HostPointer,
        Self::BufferedPage,
        Self::PointerBackwards,
        Self::PointerBeyond,
        Self::PointerMisaligned,
        Self::PointerFlag,
        Self::PointerExtension,
        Self::ItemCount,
        Self::ItemFraming,
        Self::PublishedData,
        Self::ForeignData,
        Self::HostCorrupt,
        Self::ReadOnly,
        Self::OutOfRange,
        Self::Malformed,
        Self::TooLarge,
    ];

    /// The name in log lines and diagnostics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::HostPointer => "host_pointer",
            Self::BufferedPage => "buffered_page",
            Self::PointerBackwards => "pointer_backwards",
            Self::PointerBeyond => "pointer_beyond",
            Self::PointerMisaligned => "pointer_misaligned",
            Self::PointerFlag => "pointer_flag",
            Self::PointerExtension => "pointer_extension",
            Self::ItemCount => "item_count",
            Self::ItemFraming => "item_framing",
            Self::PublishedData => "published_data",
            Self::ForeignData => "foreign_data",
            Self::HostCorrupt => "host_corrupt",
            Self::ReadOnly => "read_only",
            Self::OutOfRange => "out_of_range",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
        }
    }

    /// The index in [`Reason::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}
