#include "api/engine_pages.h"

#include "base/strings.h"

namespace fairway::api {

base::Result<MetricSpec> ParseMetricSpec(std::string_view text) {
  const auto fail = [&](std::string_view why) {
    return base::Fail(base::ErrorCode::kInvalidArgument, "metric \"" + std::string(text) +
                                                             "\": " + std::string(why) +
                                                             "; expected name or name{label=value,...}");
  };
  MetricSpec spec;
  std::string_view rest = base::Trim(text);
  const size_t brace = rest.find('{');
  spec.name = base::Trim(rest.substr(0, brace));
  if (spec.name.empty()) return fail("no name");
  if (spec.name.find_first_of(" \t\r\n\"=,}#") != std::string::npos) return fail("not a metric name");
  if (brace == std::string_view::npos) return spec;
  rest.remove_prefix(brace + 1);
  if (rest.empty() || rest.back() != '}') return fail("the closing } is missing");
  rest.remove_suffix(1);
  if (base::Trim(rest).empty()) return spec;
  for (std::string_view piece : base::Split(rest, ',')) {
    const size_t equals = piece.find('=');
    if (equals == std::string_view::npos) return fail("a label without =");
    const std::string_view name = base::Trim(piece.substr(0, equals));
    std::string_view value = base::Trim(piece.substr(equals + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    if (name.empty()) return fail("a label without a name");
    if (value.find('"') != std::string_view::npos) return fail("a quote inside a value");
    spec.labels.emplace_back(name, value);
  }
  return spec;
}

}  // namespace fairway::api
