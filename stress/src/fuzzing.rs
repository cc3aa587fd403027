//! The body of the fuzz target `template_parse`.

use std::path::Path;

use crate::parameters;
use crate::refusal::Refusal;
use crate::settings::Assignments;
use crate::template::{fill, BuildPass, Each, Pass, RunPass, Template};

const PATH: &str = "templates-run/any.toml";

/// Takes any bytes for a template of either kind. What is refused, is refused with the file and the reason; of what is taken,
/// names are words of a shell command, every placeholder has a value, and the parameters are resolved or refused.
pub fn template_parse(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(template) = taken::<RunPass>(text) {
        for pass in &template.passes {
            let kinds = [&pass.module, &pass.program, &pass.command];
            assert_eq!(kinds.into_iter().flatten().count(), 1);
            let names = pass.module.iter().chain(&pass.program).chain(&pass.files);
            assert!(names.into_iter().all(|name| is_word(name)), "{pass:?}");
            assert!(pass.ready.as_deref() != Some("") && pass.done.as_deref() != Some(""));
        }
        let _ = (template.target(), template.first_module());
    }
    if let Some(template) = taken::<BuildPass>(text) {
        for pass in &template.passes {
            assert!(pass.makes.iter().all(|name| is_word(name)), "{pass:?}");
            assert!(pass.each == Each::Kernel || pass.makes.is_empty());
        }
    }
}

fn taken<P: Pass>(text: &str) -> Option<Template<P>> {
    let template = match Template::<P>::parse(Path::new(PATH), text) {
        Ok(template) => template,
        Err(refusal) => {
            says_why(&refusal);
            return None;
        }
    };
    assert!(!template.passes.is_empty());
    for text in template.passes.iter().flat_map(Pass::texts) {
        let filled = fill(text, |_| Some("word".into()));
        assert!(filled.is_ok_and(|filled| filled.matches('{').count() <= text.matches('{').count()));
    }
    match parameters::of(&template, &Assignments::default()) {
        Ok(values) => assert!(values
            .keys()
            .all(|name| template.parameters.contains_key(name))),
        Err(refusal) => says_why(&refusal),
    }
    Some(template)
}

fn says_why(refusal: &Refusal) {
    let said = refusal.to_string();
    assert!(said.trim().len() > 10, "{said:?}");
}

/// Whatever a shell would read into it.
fn is_word(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    !name.is_empty() && !name.starts_with(['-', '.']) && name.bytes().all(plain)
}
