//! Limits on the broker's memory that tools hold.

use crate::cluster::peers::tests::{
    secret::{guarded, secret, tool},
    *,
};

fn answer(request: &ToolRequest, message: String) -> ToolResponse {
    ToolResponse { id: request.id, answer: ToolAnswer::Failed { code: 1, message } }
}

#[test]
fn requests_of_tools_wait_until_others_are_answered() {
    on_a_core(|| async {
        let (peers, inbox, addr) = guarded(hello(1), &[]);
        let mut one = Other::connect(addr).await;
        one.prove(&tool(), secret(7)).await.unwrap();
        peers.tools.requests.max.set(1);
        for id in 0..8 {
            one.ask(id).await;
        }
        for id in 0..8 {
            inbox.has_asked(1).await;
            let mut asked = inbox.asked.take();
            assert_eq!(asked.len(), 1, "one fills the share");
            let (request, promise) = asked.remove(0);
            assert_eq!(request.id, id);
            promise.keep(answer(&request, String::new()));
            assert_eq!(one.read().await.unwrap().kind, Kind::Response);
        }
        assert_eq!((peers.tools.requests.bytes.get(), peers.tools.answers.bytes.get()), (0, 0));
    });
}

#[test]
fn answers_that_nobody_reads_hold_no_more_than_the_share_and_leave_it() {
    // More than sockets take.
    const LARGE: usize = 24 << 20;
    on_a_core(|| async {
        let (peers, inbox, addr) = guarded(hello(1), &[]);
        peers.tools.answers.max.set(1);
        let (mut stuck, mut reads) = (Other::connect(addr).await, Other::connect(addr).await);
        stuck.prove(&tool(), secret(7)).await.unwrap();
        reads.prove(&tool(), secret(7)).await.unwrap();
        for id in 0..3 {
            stuck.ask(id).await;
        }
        inbox.has_asked(3).await;
        reads.ask(3).await;
        inbox.has_asked(4).await;
        for (request, promise) in inbox.asked.take() {
            promise.keep(answer(&request, "x".repeat(LARGE)));
        }
        // Its answer has room once the first tool, which takes none, is disconnected.
        assert!(reads.read().await.unwrap().bytes.len() > LARGE);
        let held = peers.tools.answers.bytes.get();
        assert!(held < LARGE + 1024, "{held} bytes");
        // The first tool's remaining answers are dropped, encoded or not.
        while peers.tools.answers.bytes.get() > 0 {
            peers.tools.answers.freed.next().await;
        }
        while peers.tools.requests.bytes.get() > 0 {
            peers.tools.requests.freed.next().await;
        }
        reads.ask(4).await;
        inbox.has_asked(1).await;
        let (request, promise) = inbox.asked.take().remove(0);
        promise.keep(answer(&request, String::new()));
        assert_eq!(reads.read().await.unwrap().kind, Kind::Response);
    });
}
