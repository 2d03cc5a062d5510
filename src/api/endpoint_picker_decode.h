// The parts of reading an EndpointPickerConfig; for endpoint_picker_*.cc only.
#pragma once

#include <optional>
#include <string_view>

#include "api/decode.h"
#include "api/endpoint_picker_config.h"

namespace fairway::api {

// Nothing when absent or "", which means the default wherever a reference is optional.
std::optional<EndpointPickerConfig::Ref> ReadOptionalRef(const Node& node);
// A reference that has to be there; reported where it is not, and then without a name.
EndpointPickerConfig::Ref ReadRequiredRef(const Node& node);
// `map`.pluginRef of a map that holds nothing else.
std::optional<EndpointPickerConfig::Ref> ReadRefMap(const Node& map);

// Fields that a plugin has where it is made, in an object that only refers to one: what to write instead.
void MistakenForPlugin(ObjectReader& reference);

// "is deprecated; use X", or that it counts for nothing because X is set, too.
void WarnMoved(const Node& old_place, std::string_view new_place, bool new_is_set);

EndpointPickerConfig::DataLayer ReadDataLayer(const Node& node);
// `on`: the feature gate. Off, what would be wrong only when it works is a warning.
EndpointPickerConfig::FlowControl ReadFlowControl(const Node& node, bool on);

// What only shows when all is read: names that are there twice, references to plugins that are not there,
// flow control that is switched off.
void CheckEndpointPickerReferences(const EndpointPickerConfig& config, ProblemList& problems);

constexpr std::string_view kEndpointPickerConfig = "EndpointPickerConfig";

}  // namespace fairway::api
