//! CRC32C by tables, sixteen bytes at a time ("slicing"), for processors that have nothing better.
//!
//! The crates that have such tables load each byte by itself, which takes 1.7 times as long on an
//! emulated processor: it looks up a page for every load.

/// The polynomial, its highest power in the lowest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Bytes that are looked up side by side.
const SLICES: usize = 16;

/// The checksum that a byte contributes, by its distance from the end.
type Tables = [[u32; 256]; SLICES];

static TABLES: Tables = tables();

#[expect(clippy::cast_possible_truncation, reason = "an index of a table of 256")]
const fn tables() -> Tables {
    let mut tables = [[0; 256]; SLICES];
    let mut byte = 0;
    while byte < 256 {
        let mut register = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            register = (register >> 1) ^ ((register & 1) * POLYNOMIAL);
            bit += 1;
        }
        tables[0][byte] = register;
        byte += 1;
    }
    let mut index = 256;
    while index < SLICES * 256 {
        let (slice, byte) = (index / 256, index % 256);
        let nearer = tables[slice - 1][byte];
        tables[slice][byte] = (nearer >> 8) ^ tables[0][(nearer & 0xff) as usize];
        index += 1;
    }
    tables
}

/// Returns the checksum of bytes whose own is `crc`, followed by `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<SLICES>();
    let register = blocks.iter().fold(!crc, |register, block| {
        let [first, last] = halves(block);
        look_up(first ^ u64::from(register), 8) ^ look_up(last, 0)
    });
    let register = rest.iter().fold(register, |register, byte| {
        (register >> 8) ^ TABLES[0][usize::from(register.to_le_bytes()[0] ^ byte)]
    });
    !register
}

/// Splits a block into words, so that bytes are loaded eight at a time.
fn halves(block: &[u8; SLICES]) -> [u64; 2] {
    let [first, last] = [0, 8].map(|at| block[at..].first_chunk().copied().unwrap_or_default());
    [u64::from_le_bytes(first), u64::from_le_bytes(last)]
}

/// Returns the checksum that a word contributes, by its distance from the end.
fn look_up(word: u64, before_end: usize) -> u32 {
    let tables = TABLES[before_end..before_end + 8].iter().rev();
    tables.zip(word.to_le_bytes()).fold(0, |sum, (table, byte)| sum ^ table[usize::from(byte)])
}
