#include "replay/trace.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>

#include "api/value.h"
#include "base/strings.h"

namespace fairway::replay {

namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // tables are written with it on some systems

constexpr std::string_view kCsvHead = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr size_t kMaxProblems = 20;
constexpr double kMaxMilliseconds = 1e12;  // 31 years: none of these overflows nanoseconds

std::string_view TakeLine(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return base::Trim(line);
}

std::optional<double> Number(const api::Value* value) {
  if (value == nullptr || value->kind != api::Value::Kind::kNumber) return std::nullopt;
  double out = 0;
  const auto [end, error] = std::from_chars(value->text.data(), value->text.data() + value->text.size(), out);
  if (error != std::errc() || !std::isfinite(out)) return std::nullopt;
  return out;
}

std::optional<uint32_t> Tokens(const api::Value* value) {
  const auto number = Number(value);
  if (!number || *number < 0 || *number > kMaxPromptTokens || *number != std::floor(*number))
    return std::nullopt;
  return static_cast<uint32_t>(*number);
}

// Each gives "" or what is wrong.
std::string ReadMooncake(std::string_view line, TraceRequest& request, Trace& trace) {
  const api::ParsedText parsed = api::ParseJson(line);
  if (!parsed.problems.empty()) return parsed.problems[0].message;
  if (parsed.documents.size() != 1 || parsed.documents[0]->kind != api::Value::Kind::kMap)
    return "want one JSON object a line";
  const api::Value& object = *parsed.documents[0];
  const auto at = Number(object.Find("timestamp"));
  if (!at || *at < 0 || *at > kMaxMilliseconds) return "timestamp: want milliseconds of 0 or more";
  const auto prompt = Tokens(object.Find("input_length")), answer = Tokens(object.Find("output_length"));
  if (!prompt || *prompt == 0) return "input_length: want a number of tokens of 1 or more";
  if (!answer) return "output_length: want a number of tokens";
  request = {.at = static_cast<base::Nanos>(std::llround(*at * 1e6)),
             .prompt_tokens = *prompt,
             .answer_tokens = std::max<uint32_t>(1, *answer),
             .first_block = static_cast<uint32_t>(trace.blocks.size())};
  const api::Value* ids = object.Find("hash_ids");
  if (ids == nullptr) return "";
  if (ids->kind != api::Value::Kind::kList) return "hash_ids: want a list of numbers";
  const uint64_t needed = (*prompt + trace.block_tokens - 1) / trace.block_tokens;
  for (const api::ValuePtr& id : ids->items) {
    const auto number =
        id->kind == api::Value::Kind::kNumber ? base::ParseInteger<uint64_t>(id->text) : std::nullopt;
    if (!number) return "hash_ids: want a list of whole numbers";
    if (request.num_blocks == needed) return "hash_ids: more than input_length has blocks of 512 tokens";
    if (trace.blocks.size() >= UINT32_MAX - 1) return "more hash_ids than this version can hold";
    trace.blocks.push_back(*number);
    ++request.num_blocks;
  }
  return "";
}

// "2023-11-16 18:17:03.9799600", also with T, Z or an offset behind.
std::optional<base::Nanos> ParseTime(std::string_view text) {
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' || (text[10] != ' ' && text[10] != 'T') ||
      text[13] != ':' || text[16] != ':')
    return std::nullopt;
  const auto number = [&](size_t from, size_t size) {
    return base::ParseInteger<unsigned>(text.substr(from, size));
  };
  const auto year = number(0, 4), month = number(5, 2), day = number(8, 2), hour = number(11, 2),
             minute = number(14, 2), second = number(17, 2);
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(*year)),
                                         std::chrono::month(*month), std::chrono::day(*day)};
  if (*year < 1970 || *year > 2200 || !date.ok() || *hour > 23 || *minute > 59 || *second > 60)
    return std::nullopt;
  base::Nanos fraction = 0;
  text.remove_prefix(19);
  if (text.starts_with('.')) {
    base::Nanos unit = base::kSecond;
    for (text.remove_prefix(1); !text.empty() && text[0] >= '0' && text[0] <= '9'; text.remove_prefix(1))
      fraction += (unit /= 10) * (text[0] - '0');
  }
  // Of a zone: what its clocks are ahead of UTC.
  int64_t ahead = 0;
  if (text.size() == 6 && (text[0] == '+' || text[0] == '-') && text[3] == ':') {
    const auto hours = base::ParseInteger<unsigned>(text.substr(1, 2)),
               minutes = base::ParseInteger<unsigned>(text.substr(4, 2));
    if (!hours || !minutes || *hours > 23 || *minutes > 59) return std::nullopt;
    ahead = (text[0] == '+' ? 1 : -1) * (int64_t{*hours} * 3600 + *minutes * 60);
  } else if (!text.empty() && text != "Z") {
    return std::nullopt;
  }
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return ((days * 24LL + *hour) * 3600 + *minute * 60 + *second - ahead) * base::kSecond + fraction;
}

std::string ReadAzure(std::string_view line, TraceRequest& request) {
  const auto fields = base::Split(line, ',');
  if (fields.size() != 3) return "want three fields: " + std::string(kCsvHead);
  const auto at = ParseTime(base::Trim(fields[0]));
  if (!at) return "TIMESTAMP: want a time as 2023-11-16 18:17:03.9799600";
  const auto prompt = base::ParseInteger<uint32_t>(base::Trim(fields[1]));
  const auto answer = base::ParseInteger<uint32_t>(base::Trim(fields[2]));
  if (!prompt || *prompt > kMaxPromptTokens) return "ContextTokens: want a number of tokens";
  if (!answer || *answer > kMaxPromptTokens) return "GeneratedTokens: want a number of tokens";
  request = {.at = *at,
             .prompt_tokens = std::max<uint32_t>(1, *prompt),
             .answer_tokens = std::max<uint32_t>(1, *answer)};
  return "";
}

}  // namespace

bool IsTrace(std::string_view text) {
  std::string_view line;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  while (line.empty() && !text.empty()) line = TakeLine(text);
  if (line.starts_with("TIMESTAMP,")) return true;
  return line.starts_with('{') && line.find("\"timestamp\"") != std::string_view::npos &&
         line.find("\"input_length\"") != std::string_view::npos;
}

std::shared_ptr<const Trace> ParseTrace(std::string_view text, const std::string& file,
                                        std::vector<api::Problem>& problems) {
  auto trace = std::make_shared<Trace>();
  trace->file = file;
  size_t wrong = 0;
  const auto fail = [&](int line, std::string what) {
    if (++wrong <= kMaxProblems)
      problems.push_back({api::Severity::kError, {file, line}, "", "", std::move(what)});
  };
  bool csv = false;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  for (int number = 1; !text.empty(); ++number) {
    const std::string_view line = TakeLine(text);
    if (line.empty()) continue;
    if (trace->requests.empty() && !csv && line.starts_with("TIMESTAMP,")) {
      if (line != kCsvHead) fail(number, "want the columns " + std::string(kCsvHead));
      csv = true;
      continue;
    }
    TraceRequest request;
    std::string error = csv ? ReadAzure(line, request) : ReadMooncake(line, request, *trace);
    if (error.empty() && trace->requests.size() == kMaxTraceRequests)
      error = "more than " + std::to_string(kMaxTraceRequests) + " requests";
    if (error.empty()) {
      trace->requests.push_back(request);
    } else {
      fail(number, std::move(error));
      if (wrong > kMaxProblems) break;
    }
  }
  if (wrong == 0 && trace->requests.empty()) fail(1, "no request is in it");
  if (wrong > 0) return nullptr;
  std::stable_sort(trace->requests.begin(), trace->requests.end(),
                   [](const TraceRequest& a, const TraceRequest& b) { return a.at < b.at; });
  const base::Nanos first = trace->requests[0].at;
  for (TraceRequest& request : trace->requests) request.at -= first;
  return trace;
}

}  // namespace fairway::replay
