// The only file that sees yaml-cpp. Its event interface is used, not its nodes: it gives lines for
// everything, does not drop duplicate keys silently, and lets the builder's bounds stop it in the middle.
#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <istream>
#include <streambuf>
#include <unordered_map>

#include "api/builder.h"
#include "api/text_rules.h"
#include "api/value.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

// Reads a text where it is.
class ViewBuffer final : public std::streambuf {
 public:
  explicit ViewBuffer(std::string_view text) {
    char* begin = const_cast<char*>(text.data());  // never written to: there is no put area
    setg(begin, begin, begin + text.size());
  }
};

// yaml-cpp keeps all tokens of a flow collection, some 70 bytes each, until it is closed. This bounds the
// memory for them and is far above what a file of kMaxValues values needs.
constexpr size_t kMaxIndicators = 2'000'000;

// yaml-cpp takes the end of the text for the closing quote, so that a file cut off in the middle would pass.
// `at` is where a scalar begins, its anchor and tag included.
bool QuoteStaysOpen(std::string_view text, size_t at) {
  while (at < text.size() && (text[at] == '&' || text[at] == '!')) {
    at = text.find_first_of(" \t\r\n", at);
    at = at == std::string_view::npos ? text.size()
                                      : std::min(text.find_first_not_of(" \t\r\n", at), text.size());
  }
  if (at >= text.size() || (text[at] != '"' && text[at] != '\'')) return false;
  const bool is_double = text[at] == '"';
  for (++at;; ++at) {
    at = text.find_first_of(is_double ? "\"\\" : "'", at);
    if (at == std::string_view::npos) return true;
    if (text[at] == '\\' || (!is_double && text.substr(at + 1).starts_with('\''))) {
      ++at;  // an escaped character, or '' for a quote
    } else {
      return false;
    }
  }
}

// Does `at` begin a line, and does the line before it, blank lines and comments left out, end the document
// above?
bool FollowsDocumentEnd(std::string_view text, size_t at) {
  size_t end = at == 0 ? std::string_view::npos : text.rfind('\n', at - 1);
  const size_t line_begin = end == std::string_view::npos ? 0 : end + 1;
  if (!base::Trim(text.substr(line_begin, at - line_begin)).empty()) return false;
  while (end != std::string_view::npos) {
    const size_t begin = end == 0 ? std::string_view::npos : text.rfind('\n', end - 1);
    const size_t first = begin == std::string_view::npos ? 0 : begin + 1;
    const std::string_view line = base::Trim(text.substr(first, end - first));
    if (!line.empty() && line[0] != '#') return line.starts_with("...");
    end = begin;
  }
  return false;
}

constexpr std::string_view kYamlTag = "tag:yaml.org,2002:";

class Handler final : public YAML::EventHandler {
 public:
  Handler(std::string_view text, ValueBuilder& builder, ParsedText& out, int first_line)
      : text_(text), builder_(builder), out_(out), first_line_(first_line) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    builder_.StartDocument();
    anchors_.clear();
    open_.clear();
    const size_t at = Offset(mark);
    // yaml-cpp takes a stray comma for an empty document, leaves it where it is and would go on so for ever.
    if (!first_ && at == document_) {
      throw ValueBuilder::Stop{Line(mark), "not valid YAML: nothing can begin with " +
                                               Quote(text_.substr(at, 1)) + "; put the text in quotes"};
    }
    document_ = at;
    if (!first_ && !text_.substr(at).starts_with("---") && !FollowsDocumentEnd(text_, at)) {
      throw ValueBuilder::Stop{
          Line(mark),
          "not valid YAML: this does not fit what is above it; check its indentation, or begin a new "
          "document with a line of ---"};
    }
    first_ = false;
  }
  void OnDocumentEnd() override {
    if (ValuePtr root = builder_.TakeDocument()) out_.documents.push_back(std::move(root));
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    // Of an empty list item the mark is that of what comes next.
    size_t at = Offset(mark);
    int line = Line(mark);
    for (; at > 0 && (text_[at - 1] == '\n' || text_[at - 1] == ' ' || text_[at - 1] == '\r'); --at) {
      if (text_[at - 1] == '\n') --line;
    }
    if (at == 0 || text_[at - 1] != '-') line = Line(mark);
    AddScalar(line, anchor, Value::Kind::kNull, "", false);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (builder_.WantsKey()) throw ValueBuilder::Stop{Line(mark), "an alias cannot be a key"};
    if (found == anchors_.end()) throw ValueBuilder::Stop{Line(mark), "the alias has no anchor"};
    // An anchor whose value is still open would make the document endless.
    if (found->second.open)
      throw ValueBuilder::Stop{Line(mark), "the alias stands for the value it is part of"};
    builder_.Alias(found->second.value, Line(mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (QuoteStaysOpen(text_, Offset(mark))) {
      throw ValueBuilder::Stop{Line(mark), "not valid YAML: a quote is opened here and never closed"};
    }
    Value::Kind kind = Value::Kind::kString;
    if (tag == "?" || tag.empty()) {
      kind = ResolvePlain(value);
    } else if (tag.starts_with(kYamlTag) && tag.substr(kYamlTag.size()) != "str") {
      kind = ResolvePlain(value);
    } else if (tag != "!" && !tag.starts_with(kYamlTag)) {
      builder_.Report(Line(mark), "the tag " + Quote(tag) + " means nothing in a manifest; leave it out");
    }
    AddScalar(Line(mark), anchor, kind, value, tag == "?" && value == "<<");
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, anchor, Value::Kind::kList);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, anchor, Value::Kind::kMap);
  }
  void OnMapEnd() override { Close(); }

  int Line(const YAML::Mark& mark) const { return mark.line < 0 ? first_line_ : first_line_ + mark.line; }

 private:
  struct Anchor {
    ValuePtr value;
    bool open = false;
  };
  void AddScalar(int line, YAML::anchor_t anchor, Value::Kind kind, const std::string& text, bool merge) {
    if (builder_.WantsKey()) {
      builder_.Key(text, line, merge);
      return;
    }
    ValuePtr value = builder_.Scalar(kind, line, text);
    if (anchor != 0) anchors_[anchor] = {std::move(value), false};
  }
  void Open(const YAML::Mark& mark, YAML::anchor_t anchor, Value::Kind kind) {
    if (builder_.WantsKey()) {
      throw ValueBuilder::Stop{
          Line(mark),
          "a key must be a text, not a list or map; is a [ or { not closed, or a {{ }} of a template left?"};
    }
    ValuePtr value = builder_.Open(kind, Line(mark));
    if (anchor != 0) anchors_[anchor] = {std::move(value), true};
    open_.push_back(anchor);
  }
  void Close() {
    const YAML::anchor_t anchor = open_.back();
    open_.pop_back();
    builder_.Close();
    if (anchor != 0) anchors_[anchor].open = false;
  }

  size_t Offset(const YAML::Mark& mark) const {
    return mark.pos < 0 ? text_.size() : std::min(static_cast<size_t>(mark.pos), text_.size());
  }

  std::string_view text_;
  ValueBuilder& builder_;
  ParsedText& out_;
  int first_line_;
  bool first_ = true;
  size_t document_ = 0;  // where it begins
  std::unordered_map<YAML::anchor_t, Anchor> anchors_;
  std::vector<YAML::anchor_t> open_;
};

std::string_view LineText(std::string_view text, int line) {
  for (int i = 1; i < line; ++i) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return {};
    text.remove_prefix(end + 1);
  }
  return text.substr(0, text.find('\n'));
}

// yaml-cpp's words for what it met, in the words of someone who has to repair the file.
std::string Explain(const YAML::Exception& error, std::string_view line_text) {
  struct Words {
    std::string_view library;
    std::string_view ours;
  };
  static const std::array<Words, 12> kWords{{
      {YAML::ErrorMsg::END_OF_MAP,
       "this line does not fit the map above it; check its indentation and the colons"},
      {YAML::ErrorMsg::END_OF_MAP_FLOW, "a { is not closed by a }"},
      {YAML::ErrorMsg::END_OF_SEQ,
       "this line does not fit the list above it; check its indentation and the dashes"},
      {YAML::ErrorMsg::END_OF_SEQ_FLOW, "a [ is not closed by a ]"},
      {YAML::ErrorMsg::MAP_VALUE,
       "a colon where none can be; put a text with \": \" in quotes, or check the indentation"},
      {YAML::ErrorMsg::MAP_KEY, "a key where none can be; check the indentation"},
      {YAML::ErrorMsg::BLOCK_ENTRY, "a list item where none can be; check the indentation of the dash"},
      {YAML::ErrorMsg::FLOW_END, "a ] or } that closes nothing"},
      {YAML::ErrorMsg::UNKNOWN_TOKEN, "a text cannot begin with this character; put it in quotes"},
      {YAML::ErrorMsg::EOF_IN_SCALAR, "a quote is opened and never closed"},
      {YAML::ErrorMsg::DOC_IN_SCALAR, "a quote is opened and never closed before the next document"},
      {YAML::ErrorMsg::UNKNOWN_ANCHOR, "the alias has no anchor"},
  }};
  std::string message = "not valid YAML: ";
  const auto* words =
      std::find_if(kWords.begin(), kWords.end(), [&](const Words& w) { return w.library == error.msg; });
  message += words != kWords.end() ? std::string(words->ours) : error.msg;
  if (error.mark.column >= 0) message += " (column " + std::to_string(error.mark.column + 1) + ")";
  const size_t text_begin = line_text.find_first_not_of(" \t");
  if (text_begin != std::string_view::npos &&
      line_text.substr(0, text_begin).find('\t') != std::string_view::npos) {
    message += "; indent with spaces, not tabs";
  }
  return message;
}

}  // namespace

ParsedText ParseYaml(std::string_view text) {
  ParsedText out;
  constexpr std::string_view kIndicators = ",:[]{}!&*?";
  const auto indicators = std::count_if(
      text.begin(), text.end(), [&](char c) { return kIndicators.find(c) != std::string_view::npos; });
  if (static_cast<size_t>(indicators) > kMaxIndicators) {
    out.problems.push_back(
        {0, "more than 2000000 commas, colons and brackets in one file; split it into files of one folder"});
    return out;
  }
  ValueBuilder builder(out);
  int first_line = 1;
  while (!text.empty()) {
    Handler handler(text, builder, out, first_line);
    ValueBuilder::Stop stop;
    try {
      ViewBuffer buffer(text);
      std::istream stream(&buffer);
      YAML::Parser parser(stream);
      while (parser.HandleNextDocument(handler)) {
      }
      return out;
    } catch (const ValueBuilder::Stop& caught) {
      stop = caught;
    } catch (const YAML::DeepRecursion& error) {
      stop = {handler.Line(error.mark), "nested deeper than 100 levels"};
    } catch (const YAML::Exception& error) {
      stop.line = handler.Line(error.mark);
      stop.message = Explain(error, LineText(text, stop.line - first_line + 1));
    } catch (const std::exception& error) {
      stop = {first_line, std::string("not valid YAML: ") + error.what(), true};
    }
    builder.StartDocument();
    // Each new start costs a pass over what is left, so their number is bounded.
    if (out.problems.size() >= kMaxSyntaxProblems / 4) stop.file = true;
    // An error on a line of "---" itself is met again when that document is read by itself.
    const bool again = !out.problems.empty() && out.problems.back().line == stop.line &&
                       out.problems.back().message == stop.message;
    if (!again) out.problems.push_back({stop.line, std::move(stop.message)});
    if (stop.file) return out;
    // The next document may be fine: all problems of a file are told at once.
    for (;;) {
      const size_t end = text.find('\n');
      if (end == std::string_view::npos) return out;
      text.remove_prefix(end + 1);
      ++first_line;
      if (first_line >= stop.line && text.starts_with("---")) break;
    }
  }
  return out;
}

}  // namespace fairway::api
