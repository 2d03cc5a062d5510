// Replays requests through the core and through `fairway epp`, and writes what came of each as a line.
//
//   equality_replay MANIFESTS SEED LORA_EXPLORATION EXT_PROC_PORT [CONFIG]      port 0: the core alone
//
// Commands on standard input, each answered with "ok":
//   state FILE                       the core's cells get these signals
//   run REQUESTS CORE EXT_PROC       reads REQUESTS, writes the two files of lines
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "base/strings.h"
#include "tests/equality/pickers.h"

namespace fairway::equality {
namespace {

// "-" is none.
std::vector<std::string> Names(const std::string& text) {
  std::vector<std::string> names;
  if (text == "-") return names;
  for (const std::string_view name : base::Split(text, ',')) names.emplace_back(name);
  return names;
}

// A line per server: ADDRESS WAITING RUNNING KV_USAGE MAX_ADAPTERS ADAPTERS WAITING_ADAPTERS
std::vector<ServerState> ReadState(const std::string& path) {
  std::ifstream file(path);
  if (!file) Die("cannot read " + path);
  std::vector<ServerState> servers;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    ServerState server;
    double kv_usage = 0;
    std::string adapters;
    std::string waiting;
    words >> server.address >> server.waiting >> server.running >> kv_usage >> server.max_adapters >>
        adapters >> waiting;
    if (!words) Die("a line of the state is wrong: " + line);
    server.kv_usage = static_cast<float>(kv_usage);
    server.adapters = Names(adapters);
    server.waiting_adapters = Names(waiting);
    servers.push_back(std::move(server));
  }
  return servers;
}

template <typename Picker>
void Replay(const std::vector<Request>& requests, Picker& picker, const std::string& path) {
  std::ofstream out(path, std::ios::binary);
  for (const Request& request : requests) out << ToLine(request, picker.Ask(request)) << '\n';
  if (!out.flush()) Die("cannot write " + path);
}

int Main(int argc, char** argv) {
  if (argc != 5 && argc != 6)
    Die("usage: equality_replay MANIFESTS SEED LORA_EXPLORATION EXT_PROC_PORT [CONFIG]");
  Core core(argv[1], std::stoull(argv[2]), std::stod(argv[3]), argc == 6 ? argv[5] : "");
  const auto port = static_cast<uint16_t>(std::stoul(argv[4]));
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    std::string first;
    std::string core_lines;
    std::string ext_proc_lines;
    words >> command >> first >> core_lines >> ext_proc_lines;
    if (command == "state") {
      core.SetState(ReadState(first));
    } else if (command == "run") {
      const std::vector<Request> requests = ReadRequests(first);
      Replay(requests, core, core_lines);
      if (port != 0) {
        ExtProc ext_proc(port);
        Replay(requests, ext_proc, ext_proc_lines);
      }
    } else {
      Die("no command " + line);
    }
    std::cout << "ok" << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace fairway::equality

int main(int argc, char** argv) { return fairway::equality::Main(argc, argv); }
