//! Makes the types of a mesh's messages from one list with a row for each kind.
//!
//! A row of [`asks`] is `Name { what it carries } -> reply = |core| work;`, where `core` is the `Rc` of the core that
//! was asked, and `work` is a future. What needs no wait is done when `work` is there. `as Box`, behind the name or the
//! reply, keeps a large value on the heap on its way. A row of [`notices`] is the same without a reply; `core` is a
//! reference, and `work` is done at once.

use super::{HasMesh, Lane};
use std::{pin::Pin, rc::Rc};

/// The work on an ask.
pub type Working<T> = Pin<Box<dyn Future<Output = T>>>;

/// All asks of a mesh, as an enum.
pub trait AskList<C: HasMesh>: Send + 'static {
    const NAMES: &'static [&'static str];

    /// The place of its kind in `NAMES`.
    fn kind(&self) -> usize;

    fn work(self, core: &Rc<C>) -> Working<C::Reply>;
}

/// All notices of a mesh, as an enum.
pub trait NoticeList<C>: Send + 'static {
    const NAMES: &'static [&'static str];

    /// The place of its kind in `NAMES`.
    fn kind(&self) -> usize;

    fn lane(&self) -> Lane;

    fn take(self, core: &Rc<C>);
}

/// One kind of ask.
pub trait AskKind<C: HasMesh>: 'static {
    type Reply: 'static;

    /// Works on the ask, on the core that was asked.
    fn work(self, core: Rc<C>) -> impl Future<Output = Self::Reply> + 'static;

    fn into_ask(self) -> C::Ask;

    /// The reply to an ask of this kind.
    fn from_reply(reply: C::Reply) -> Self::Reply;
}

/// A message or reply as it travels: itself, or boxed.
pub trait Carried<T> {
    fn open(self) -> T;
}

impl<T> Carried<T> for T {
    fn open(self) -> T {
        self
    }
}

impl<T> Carried<T> for Box<T> {
    fn open(self) -> T {
        *self
    }
}

macro_rules! carried {
    ($carried:ty) => { $carried };
    ($carried:ty as $boxed:ident) => { $boxed<$carried> };
}

/// Makes the enums `Ask` and `AskReply`, and a type for each row.
macro_rules! asks {
    ($of:ident: $(
        $(#[$doc:meta])*
        $name:ident $(as $boxed:ident)? { $($field:ident: $type:ty),* $(,)? } -> $reply:ty $(as $reply_boxed:ident)?
            = |$core:ident| $work:expr;
    )+) => {
        /// Everything that a core asks of another.
        pub enum Ask {
            $($(#[$doc])* $name($crate::core::mesh::list::carried!($name $(as $boxed)?)),)+
        }

        /// The replies, one kind for each ask.
        pub enum AskReply {
            $($name($crate::core::mesh::list::carried!($reply $(as $reply_boxed)?)),)+
        }

        impl $crate::core::mesh::list::AskList<$of> for Ask {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),+];

            fn kind(&self) -> usize {
                enum Place { $($name),+ }
                (match self { $(Self::$name(_) => Place::$name),+ }) as usize
            }

            fn work(self, core: &std::rc::Rc<$of>) -> $crate::core::mesh::list::Working<AskReply> {
                use $crate::core::mesh::list::{AskKind, Carried};
                match self {
                    $(Self::$name(ask) => {
                        let working = AskKind::work(Carried::<$name>::open(ask), core.clone());
                        Box::pin(async move { AskReply::$name(working.await.into()) })
                    })+
                }
            }
        }

        $(
            $(#[$doc])*
            pub struct $name {
                $(pub $field: $type,)*
            }

            impl $crate::core::mesh::list::AskKind<$of> for $name {
                type Reply = $reply;

                fn work(self, $core: std::rc::Rc<$of>) -> impl Future<Output = $reply> + 'static {
                    let Self { $($field),* } = self;
                    $work
                }

                fn into_ask(self) -> Ask {
                    Ask::$name(self.into())
                }

                fn from_reply(reply: AskReply) -> $reply {
                    match reply {
                        AskReply::$name(reply) => $crate::core::mesh::list::Carried::<$reply>::open(reply),
                        _ => unreachable!("a reply is of its ask's kind"),
                    }
                }
            }
        )+
    };
}

/// Makes the enum `Notice`. Its rows are grouped by their lanes.
macro_rules! notices {
    ($of:ident: $(in $lane:ident { $(
        $(#[$doc:meta])*
        $name:ident $({ $($field:ident: $type:ty),* $(,)? })? = |$core:ident| $work:expr;
    )+ })+) => {
        /// Everything that a core tells another and that gets no reply.
        pub enum Notice {
            $($($(#[$doc])* $name $({ $($field: $type),* })?,)+)+
        }

        impl $crate::core::mesh::list::NoticeList<$of> for Notice {
            const NAMES: &'static [&'static str] = &[$($(stringify!($name)),+),+];

            fn kind(&self) -> usize {
                enum Place { $($($name),+),+ }
                (match self { $($(Self::$name { .. } => Place::$name),+),+ }) as usize
            }

            fn lane(&self) -> $crate::core::mesh::Lane {
                match self { $($(Self::$name { .. })|+ => $crate::core::mesh::Lane::$lane),+ }
            }

            fn take(self, core: &std::rc::Rc<$of>) {
                match self {
                    $($(Self::$name $({ $($field),* })? => {
                        let $core = core;
                        $work
                    })+)+
                }
            }
        }
    };
}

pub(crate) use {asks, carried, notices};
