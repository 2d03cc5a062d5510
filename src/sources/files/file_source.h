// Manifests that change while they are served: watches files and folders and loads them anew.
//
// Follows in-place writes, atomic renames, symlink swaps as Kubernetes makes them for ConfigMaps, and files
// that come and go in a watched folder: by inotify on the folders, and by looking at every file's inode, size
// and time each second, which also reaches network file systems. Looking and loading have a thread of their
// own: a file of 100,000 endpoints takes seconds, a file system that is away takes longer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/load.h"
#include "api/manifests.h"
#include "base/clock.h"
#include "net/loop.h"

namespace fairway::sources {

// Owned by its loop's thread. May be destroyed inside its own callback; that waits for a load that is going
// on.
class FileSource {
 public:
  // On the loop, once per change of the content. A broken or torn state is delivered, too, with its problems:
  // the receiver keeps what it has when !result.ok(). A file that vanished is a problem of that kind.
  using Changed = std::function<void(const api::LoadResult&)>;

  // What reads the files, on this source's own thread.
  using Loader = std::function<api::LoadResult(const std::vector<std::string>&, const api::LoadOptions&)>;

  // `settle`: how long nothing must change before it is read, so that a file being written is read once and
  // whole; what never comes to rest is read all the same after 40 times that. `known`: the fingerprint of
  // what the caller has loaded; a change since then is delivered. Without it the content of now counts as
  // known. Standard input and pipes can be read once only: when `paths` has one, nothing is watched. A file
  // that becomes one is a problem like a broken file.
  FileSource(net::Loop& loop, std::vector<std::string> paths, Changed changed,
             base::Nanos settle = 50 * base::kMillisecond, std::optional<uint64_t> known = std::nullopt,
             const api::LoadOptions& load = {}, Loader loader = {});  // empty: api::LoadManifests
  ~FileSource();
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  // Reads the files now, also where nothing shows that they changed.
  void LookAgain();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
  const std::shared_ptr<bool> alive_;  // the owner's loop's
};

}  // namespace fairway::sources
