//! Records that are 64-bit words and nothing else.

/// Makes the record that is read and written, `Fields` with its bytes, and the ways from one to
/// the other.
macro_rules! words {
    ($(#[$record_doc:meta])+ $record:ident { $($(#[$doc:meta])+ $word:ident,)+ }) => {
        $(#[$record_doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)] // The modules have C fill it in.
        pub struct $record {
            $($(#[$doc])+ pub $word: u64,)+
        }

        /// Its bytes.
        #[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes)]
        #[derive(zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
        #[repr(C)]
        pub(super) struct Fields {
            $($word: zerocopy::byteorder::little_endian::U64,)+
        }

        impl Fields {
            #[inline]
            pub(super) fn of(record: &$record) -> Self {
                Self {
                    $($word: zerocopy::byteorder::little_endian::U64::new(record.$word),)+
                }
            }

            #[inline]
            pub(super) fn record(&self) -> $record {
                $record {
                    $($word: self.$word.get(),)+
                }
            }
        }
    };
}
