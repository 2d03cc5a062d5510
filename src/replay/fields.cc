#include "replay/fields.h"

#include <sys/stat.h>

#include <cmath>
#include <utility>

#include "api/load.h"
#include "api/scalars.h"
#include "base/strings.h"

namespace fairway::replay {

std::optional<base::Nanos> ReadTime(const api::Node& node, base::Nanos min, base::Nanos max) {
  if (!node.present()) return std::nullopt;
  std::optional<base::Nanos> time;
  if (node.Is(api::Value::Kind::kNumber)) {
    if (const auto seconds = api::ParseReal(node.value().text); seconds && std::abs(*seconds) < 9e9)
      time = static_cast<base::Nanos>(std::llround(*seconds * 1e9));
  } else if (node.Is(api::Value::Kind::kString)) {
    time = base::ParseDuration(node.value().text);
  }
  if (time && *time >= min && *time <= max) return time;
  node.Error("want a time as \"50ms\" or \"1m30s\", or seconds, of " + api::ShowDuration(min) + " to " +
             api::ShowDuration(max));
  return std::nullopt;
}

std::string ToText(const std::vector<api::Problem>& problems) {
  std::string text;
  for (const api::Problem& problem : problems) text += api::ToString(problem) + "\n";
  if (!text.empty()) text.pop_back();
  return text;
}

std::optional<std::string> ReadFile(const std::string& path, size_t max_bytes,
                                    std::vector<api::Problem>& problems) {
  const auto fail = [&](std::string what) {
    problems.push_back({api::Severity::kError, {path, 0}, "", "", std::move(what)});
    return std::nullopt;
  };
  struct stat info{};
  if (::stat(path.c_str(), &info) == 0 && (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)))
    return fail("is a device, not a file");
  auto text = api::ReadFile(path, {.max_bytes = max_bytes});
  if (!text) return fail(text.error().message);
  return std::move(*text);
}

}  // namespace fairway::replay
