// Manifests that change while they are served: watches files and folders and loads them anew.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "net/loop.h"

namespace fairway::sources {

// Owned by its loop's thread. Follows in-place writes, atomic renames, symlink swaps as Kubernetes makes them
// for ConfigMaps, and files that come and go in a watched folder.
class FileSource {
 public:
  // On the loop, once per change of the content. A broken or torn state is delivered, too, with its problems:
  // the receiver keeps what it has when !result.ok(). A file that vanished is a problem of that kind.
  using Changed = std::function<void(const api::LoadResult&)>;

  // Watches from now on; the content of now is known to the caller and not delivered. `settle`: how long
  // nothing must change before it is read, so that a file being written is read once and whole.
  FileSource(net::Loop& loop, std::vector<std::string> paths, Changed changed,
             base::Nanos settle = 50 * base::kMillisecond);
  ~FileSource();
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::sources
