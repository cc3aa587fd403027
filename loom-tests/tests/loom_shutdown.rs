//! A thread that is told to stop while calls are under way: it finds every item that was pushed before the wish, and each is
//! handled once.

use loom::sync::Arc;
use loom::thread;
use mitosis_loom_tests::sync::count::Tally;
use mitosis_loom_tests::sync::spsc::Ring;
use mitosis_loom_tests::sync::stop::Stop;

#[test]
fn loom_what_was_pushed_before_the_wish_is_handled() {
    loom::model(|| {
        let (mut producer, mut consumer) = Box::leak(Box::new(Ring::<u64, 2>::new())).split();
        let stop = Arc::new(Stop::new());
        let handled = Arc::new(Tally::new());
        let worker = thread::spawn({
            let (stop, handled) = (stop.clone(), handled.clone());
            move || loop {
                // The wish is looked at first: what is found afterwards was pushed before it.
                let last = stop.wanted();
                while let Some(item) = consumer.pop() {
                    handled.add(item);
                }
                if last {
                    return;
                }
                thread::yield_now();
            }
        });
        producer.push(3).unwrap();
        producer.push(4).unwrap();
        stop.want();
        worker.join().unwrap();
        assert_eq!(handled.value(), 7);
    });
}
