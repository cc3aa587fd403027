//! `stress/cpp/walker.cpp` on a host: a process with known memory that is forked to other hosts and does, wherever it is, what
//! it is told.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::cluster::shell::quote;
use crate::cluster::Host;
use crate::klog::watch::{Patience, Said, Task, Waited, Watch};
use crate::scene::STEP;

/// The program, as builds call it.
pub const PROGRAM: &str = "fork-walker";
/// Where the module listens unless it is told otherwise.
const SERVICE: u32 = 2;
/// For a process to fill, or to walk over, the memory of the tests.
pub const WALK: Duration = Duration::from_secs(120);

/// What a seed goes by.
#[derive(Clone, Debug)]
pub struct SeedName {
    /// At which service of its machine whoever has it is found.
    pub service: u32,
    /// Place in its machine's table.
    pub id: u64,
    /// Which of the seeds that were there.
    pub generation: u64,
    /// 32 hexadecimal digits; `-` for none.
    pub capability: String,
}

impl SeedName {
    /// As the module's log has it.
    pub fn in_log(&self) -> String {
        format!("seed {}.{}", self.id, self.generation)
    }
}

/// A line `word: name=value…`.
#[derive(Clone, Debug)]
pub struct Answer(String);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Answer {
    /// Of what something else has said.
    pub fn of(text: &str) -> Self {
        Self(text.to_string())
    }

    /// Whether it has these words.
    pub fn contains(&self, words: &str) -> bool {
        self.0.contains(words)
    }

    /// The text of a field.
    pub fn text(&self, name: &str) -> Result<&str> {
        let fields = self.0.split_whitespace();
        let mut fields = fields.filter_map(|field| field.split_once('='));
        let found = fields.find(|(known, _)| *known == name);
        found
            .map(|(_, value)| value)
            .with_context(|| format!("no {name} in {:?}", self.0))
    }

    /// The number in a field.
    pub fn number(&self, name: &str) -> Result<u64> {
        let text = self.text(name)?;
        text.parse()
            .with_context(|| format!("{name}={text} in {:?}", self.0))
    }
}

/// One on a host.
pub struct Walker {
    /// Which.
    pub host: usize,
    task: Task,
    heard: usize,
}

/// How a child is made.
#[derive(Clone, Copy, Default)]
pub struct How<'a> {
    /// Pages read with one that was touched; 0: the module's default.
    pub prefetch: u32,
    /// Reads all pages first.
    pub eager: bool,
    /// Shell commands before it, in the process that becomes the child.
    pub before: &'a str,
}

impl Walker {
    /// A parent with `mib` MiB that follow from `secret`; `small`: no huge pages.
    pub fn start(
        watch: &mut Watch<'_>,
        hosts: &[Host],
        host: usize,
        mib: u64,
        secret: u64,
        small: bool,
    ) -> Result<Self> {
        let small = if small { " small" } else { "" };
        let words = format!("{mib} {secret}{small}");
        let mut walker = Self::run(watch, hosts, host, &words, "")?;
        walker.hear(watch, "ready", WALK)?;
        Ok(walker)
    }

    /// Makes children on `host`, one after another, of seeds of a parent with this memory on the machine with this GID.
    pub fn cycle(
        watch: &mut Watch<'_>,
        hosts: &[Host],
        host: usize,
        gid: &str,
        mib: u64,
        secret: u64,
    ) -> Result<Self> {
        let words = format!("cycle {gid} {SERVICE} {mib} {secret}");
        let mut walker = Self::run(watch, hosts, host, &words, "")?;
        walker.hear(watch, "ready", WALK)?;
        Ok(walker)
    }

    /// A child on `host` of a seed on the machine with this GID.
    pub fn resume(
        watch: &mut Watch<'_>,
        hosts: &[Host],
        host: usize,
        gid: &str,
        seed: &SeedName,
        how: How<'_>,
    ) -> Result<(Self, Answer)> {
        let mut walker = Self::order(watch, hosts, host, gid, seed, how)?;
        let answer = walker.hear(watch, "begun", WALK)?;
        Ok((walker, answer))
    }

    /// Likewise, without waiting for anything.
    pub fn order(
        watch: &mut Watch<'_>,
        hosts: &[Host],
        host: usize,
        gid: &str,
        seed: &SeedName,
        how: How<'_>,
    ) -> Result<Self> {
        let SeedName {
            service,
            id,
            generation,
            capability,
        } = seed;
        let eager = if how.eager { " eager" } else { "" };
        let words = format!(
            "resume {gid} {service} {id} {generation} {capability} {}{eager}",
            how.prefetch
        );
        Self::run(watch, hosts, host, &words, how.before)
    }

    fn run(
        watch: &mut Watch<'_>,
        hosts: &[Host],
        host: usize,
        words: &str,
        before: &str,
    ) -> Result<Self> {
        let directory = quote(&hosts[host].directory.to_string_lossy());
        // Its status in words: of a process that a signal ended, ssh would say nothing.
        let script = format!(
            "cd {directory} && ( {before} exec ./{PROGRAM} {words} ); echo \"status: code=$?\""
        );
        Ok(Self {
            host,
            task: watch.spawn(host, &script)?,
            heard: 0,
        })
    }

    /// Tells it something.
    pub fn tell(&self, watch: &mut Watch<'_>, line: &str) -> Result<()> {
        watch.tell(self.task, line)
    }

    /// Its next line that begins with `word`; others before it are passed over.
    pub fn hear(&mut self, watch: &mut Watch<'_>, word: &str, timeout: Duration) -> Result<Answer> {
        let word = format!("{word}: ");
        let task = self.task;
        let heard = self.heard;
        let find = |watch: &Watch<'_>| {
            let lines = watch.said(task).iter().skip(heard);
            lines
                .map(|line| line.text.clone())
                .position(|line| line.starts_with(&word))
        };
        let waited = watch.wait(timeout, Patience::Eager, |watch| {
            find(watch).is_some() || watch.ended(task).is_some()
        })?;
        if let Some(at) = find(watch) {
            self.heard = heard + at + 1;
            return Ok(Answer(watch.said(task)[heard + at].text.clone()));
        }
        let name = watch.logs[self.host].name.clone();
        let last = self.last_words(watch);
        match waited {
            Waited::Broken => bail!("{name}: something was found while waiting for {word:?}"),
            Waited::Late => bail!(
                "{name}: the walker did not say {word:?} within {} s; its last words: {last}",
                timeout.as_secs()
            ),
            Waited::Done => bail!(
                "{name}: the walker ended without having said {word:?}; its last words: {last}"
            ),
        }
    }

    fn last_words(&self, watch: &Watch<'_>) -> String {
        let said = watch.said(self.task);
        let last = said.iter().rev().take(3).rev();
        let mut words: Vec<&str> = last.map(|line| line.text.as_str()).collect();
        if let Some(ended) = watch.ended(self.task) {
            words.push(&ended.complaint);
        }
        words.join("; ")
    }

    /// Tells it something and waits for the answer.
    pub fn ask(&mut self, watch: &mut Watch<'_>, line: &str, word: &str) -> Result<Answer> {
        self.tell(watch, line)?;
        self.hear(watch, word, WALK)
    }

    /// Becomes a parent.
    pub fn prepare(&mut self, watch: &mut Watch<'_>) -> Result<(SeedName, Answer)> {
        self.prepare_by(watch, "prepare")
    }

    /// Becomes a parent whose copy does not freeze before it is told `let`.
    pub fn hold(&mut self, watch: &mut Watch<'_>) -> Result<(SeedName, Answer)> {
        self.prepare_by(watch, "hold")
    }

    /// Becomes a parent whose copy does not freeze before the parent's end, and has a lease.
    pub fn hold_to_the_end(
        &mut self,
        watch: &mut Watch<'_>,
        lease: Duration,
    ) -> Result<(SeedName, Answer)> {
        self.prepare_by(watch, &format!("hold {}", lease.as_millis()))
    }

    fn prepare_by(&mut self, watch: &mut Watch<'_>, line: &str) -> Result<(SeedName, Answer)> {
        let answer = self.ask(watch, line, "prepared")?;
        let seed = SeedName {
            service: SERVICE,
            id: answer.number("id")?,
            generation: answer.number("generation")?,
            capability: answer.text("capability")?.to_string(),
        };
        Ok((seed, answer))
    }

    /// Walks over pages, as `line` says, all of which must be right.
    pub fn walk(&mut self, watch: &mut Watch<'_>, line: &str) -> Result<Answer> {
        self.tell(watch, line)?;
        self.walked(watch, line)
    }

    /// Waits for the end of a walk that it was told of.
    pub fn walked(&mut self, watch: &mut Watch<'_>, line: &str) -> Result<Answer> {
        let answer = self.hear(watch, "walked", WALK)?;
        let (pages, wrong) = (answer.number("pages")?, answer.number("wrong")?);
        ensure!(
            pages > 0 && wrong == 0,
            "{}: `{line}` found {wrong} of {pages} pages wrong",
            watch.logs[self.host].name
        );
        Ok(answer)
    }

    /// Waits until it is over; its exit status as a shell has it: 128 and the signal's number where one ended it.
    pub fn status(&mut self, watch: &mut Watch<'_>, timeout: Duration) -> Result<u64> {
        let code = self.hear(watch, "status", timeout)?.number("code")?;
        // Its session with it: ssh takes the end of one that still closes for the next one's, whose words are lost then.
        let task = self.task;
        watch.wait(STEP, Patience::Stubborn, |watch| {
            watch.ended(task).is_some()
        })?;
        Ok(code)
    }

    /// Tells it to end, which it must do without complaint.
    pub fn end(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        self.tell(watch, "end")?;
        let status = self.status(watch, STEP)?;
        ensure!(
            status == 0,
            "{}: the walker ended with status {status}: {}",
            watch.logs[self.host].name,
            self.last_words(watch)
        );
        Ok(())
    }

    /// All that it has said.
    pub fn said<'w>(&self, watch: &'w Watch<'_>) -> &'w [Said] {
        watch.said(self.task)
    }

    /// The longest time since `since` in which it said nothing, up to its last line.
    pub fn longest_silence(&self, watch: &Watch<'_>, since: Instant) -> Duration {
        let said = self.said(watch).iter().map(|line| line.at);
        let after = said.filter(|at| *at >= since);
        let times: Vec<Instant> = std::iter::once(since).chain(after).collect();
        let between = times.windows(2).map(|pair| pair[1] - pair[0]);
        between.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_name() {
        let answer = Answer("walked: pages=8 wrong=0 ns=12".into());
        assert_eq!(answer.number("pages").unwrap(), 8);
        assert_eq!(answer.text("ns").unwrap(), "12");
        let error = answer.number("median_ns").unwrap_err().to_string();
        assert_eq!(error, "no median_ns in \"walked: pages=8 wrong=0 ns=12\"");
    }
}
