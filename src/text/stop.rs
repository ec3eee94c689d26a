//! stub
/// stub
pub struct StopMatcher;
#[allow(missing_docs, unused_variables)]
impl StopMatcher {
    pub fn new(stop: &[String]) -> Self {
        StopMatcher
    }
    pub fn push(&mut self, text: &str) -> String {
        text.to_owned()
    }
    pub fn is_matched(&self) -> bool {
        false
    }
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
