//! The fields of messages, by version: enough to know where each one ends.

/// A field's type, as far as it determines the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uuid,
    String,
    Bytes,
    Array(&'static Type),
    Struct(&'static [Field]),
    OptionalStruct(&'static [Field]),
}

/// A field of a message, or of a struct in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub of: Type,
    /// The first and last version that has this field.
    pub from: i16,
    pub to: i16,
    /// Whether null is allowed in some version. (In a version that does not allow it, the codec rejects it.)
    pub nullable: bool,
    /// Set for a tagged field, which stands at the end of its struct (KIP-482).
    pub tag: Option<u32>,
}

pub(crate) const fn f(name: &'static str, of: Type) -> Field {
    Field { name, of, from: 0, to: i16::MAX, nullable: false, tag: None }
}

impl Field {
    pub(crate) const fn from(self, from: i16) -> Field {
        Field { from, ..self }
    }

    pub(crate) const fn to(self, to: i16) -> Field {
        Field { to, ..self }
    }

    pub(crate) const fn nullable(self) -> Field {
        Field { nullable: true, ..self }
    }

    pub(crate) const fn tag(self, tag: u32) -> Field {
        Field { tag: Some(tag), ..self }
    }

    pub fn exists_in(&self, version: i16) -> bool {
        (self.from..=self.to).contains(&version)
    }
}

impl Type {
    /// The minimum encoded size of a value, in bytes.
    pub fn bytes_min(self, version: i16, flexible: bool) -> usize {
        match self {
            Type::Bool | Type::Int8 | Type::OptionalStruct(_) => 1,
            Type::Int16 => 2,
            Type::Int32 => 4,
            Type::Int64 => 8,
            Type::Uuid => 16,
            _ if flexible && !matches!(self, Type::Struct(_)) => 1,
            Type::String => 2,
            Type::Bytes | Type::Array(_) => 4,
            Type::Struct(fields) => {
                let present = fields.iter().filter(|field| field.exists_in(version) && field.tag.is_none());
                present.map(|field| field.of.bytes_min(version, flexible)).sum::<usize>() + usize::from(flexible)
            }
        }
    }
}

/// A list of fields, as rows of [`crate::codec::table`] have them.
macro_rules! fields {
    (@type [$element:tt]) => {
        $crate::codec::schema::Type::Array(&$crate::codec::schema::fields!(@type $element))
    };
    (@type {$($fields:tt)*}) => {
        $crate::codec::schema::Type::Struct($crate::codec::schema::fields!($($fields)*))
    };
    (@type (optional {$($fields:tt)*})) => {
        $crate::codec::schema::Type::OptionalStruct($crate::codec::schema::fields!($($fields)*))
    };
    (@type $primitive:ident) => {
        $crate::codec::schema::Type::$primitive
    };
    ($($name:literal: $of:tt $(.$modifier:ident($($argument:literal)?))*),* $(,)?) => {
        &[$(
            $crate::codec::schema::f($name, $crate::codec::schema::fields!(@type $of))$(.$modifier($($argument)?))*
        ),*]
    };
}
pub(crate) use fields;
