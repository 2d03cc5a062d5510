// The list of plugins is plugin_list.h, read twice: declarations, then entries. No static-initialiser
// registration, so that what is linked is what is listed, and nothing runs before main.
#include <array>

#include "scheduling/plugin.h"

namespace fairway::scheduling {

#define PLUGIN(type, make, ...) std::unique_ptr<Plugin> make(Build& build);
#include "scheduling/plugin_list.h"
#undef PLUGIN

namespace {

PluginType Entry(std::string_view type, std::unique_ptr<Plugin> (*make)(Build&), Stability stability,
                 std::string_view makes = {}, std::string_view successor = {},
                 std::string_view removal = {}) {
  return {type, make, stability, makes, successor, removal};
}

}  // namespace

std::span<const PluginType> BuiltinPlugins() {
  using enum Stability;
  static const auto types = std::to_array<PluginType>({
#define PLUGIN(type, make, ...) Entry(type, make, __VA_ARGS__),
#include "scheduling/plugin_list.h"
#undef PLUGIN
  });
  return types;
}

}  // namespace fairway::scheduling
