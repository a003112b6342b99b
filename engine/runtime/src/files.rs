//! glommio's own files. `wal::disk::glommio` compares them with the io_uring that the broker uses.

pub use glommio::{
    GlommioError,
    io::{Directory, DmaFile, OpenOptions, remove, rename},
};
