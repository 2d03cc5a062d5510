#include "sources/scrape/labels.h"

#include "base/strings.h"

namespace fairway::sources::scrape {
namespace {

// Takes one character off `raw`. Escapes of the exposition format: \\ \" \n; another escape stands for
// itself.
char Unescape(std::string_view& raw) {
  char c = raw.front();
  raw.remove_prefix(1);
  if (c != '\\' || raw.empty()) return c;
  if (raw.front() == 'n') {
    c = '\n';
  } else if (raw.front() == '"' || raw.front() == '\\') {
    c = raw.front();
  } else {
    return c;
  }
  raw.remove_prefix(1);
  return c;
}

}  // namespace

LabelStep NextLabel(std::string_view& text, Label& label) {
  SkipBlanks(text);
  if (!text.empty() && text.front() == ',') {
    text.remove_prefix(1);
    SkipBlanks(text);
  }
  if (text.empty()) return LabelStep::kBad;
  if (text.front() == '}') {
    text.remove_prefix(1);
    return LabelStep::kEnd;
  }
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) return LabelStep::kBad;
  label.name = base::Trim(text.substr(0, equals));
  text.remove_prefix(equals + 1);
  SkipBlanks(text);
  if (text.empty() || text.front() != '"') return LabelStep::kBad;
  text.remove_prefix(1);
  for (size_t from = 0;;) {
    const size_t stop = text.find_first_of("\"\\", from);
    if (stop == std::string_view::npos) return LabelStep::kBad;
    if (text[stop] == '"') {
      label.raw = text.substr(0, stop);
      text.remove_prefix(stop + 1);
      return LabelStep::kLabel;
    }
    from = stop + 2;
    if (from > text.size()) return LabelStep::kBad;
  }
}

std::string_view Plain(std::string_view raw, std::string& storage) {
  if (raw.find('\\') == std::string_view::npos) return raw;
  const size_t begin = storage.size();
  while (!raw.empty()) storage += Unescape(raw);
  return std::string_view(storage).substr(begin);
}

bool ValueIs(std::string_view raw, std::string_view wanted) {
  if (raw.find('\\') == std::string_view::npos) return raw == wanted;
  for (char c : wanted) {
    if (raw.empty() || Unescape(raw) != c) return false;
  }
  return raw.empty();
}

std::optional<uint32_t> SmallNumber(std::string_view raw) {
  return base::ParseInteger<uint32_t>(base::Trim(raw));
}

bool IsUnknown(std::string_view raw) {
  const std::string_view text = base::Trim(raw);
  return text.empty() || text == "None";
}

}  // namespace fairway::sources::scrape
