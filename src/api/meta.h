// What every object has: where it stands, how it is called, which pool it means.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace fairway::api {

// Where something stands; lines count from 1, 0 is unknown.
struct Position {
  std::string file;  // as the user named it; "-" is standard input
  int line = 0;
};

struct ObjectMeta {
  std::string name;
  std::string namespace_name = "default";
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> annotations;
  std::string creation_timestamp;  // RFC 3339, "" when absent; sorts as text
  Position where;
};

// "namespace/name", the key of an object among those of its kind.
std::string Key(const ObjectMeta& meta);
std::string Key(std::string_view namespace_name, std::string_view name);

// An InferencePool in the namespace of the object that refers to it.
struct PoolRef {
  std::string group;
  std::string name;
  Position where;
};

}  // namespace fairway::api
