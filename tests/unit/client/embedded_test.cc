#include "client/session/embedded.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "client/session/identity.h"
#include "tests/unit/client/client_fixture.h"

namespace reprise::client::test {
namespace {

namespace fs = std::filesystem;

// Sets an environment variable for one test.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Setting() { ::unsetenv(name_); }

 private:
  const char* name_;
};

class EmbeddedTest : public testing::Test {
 protected:
  EmbeddedTest() {
    char folder[] = "/tmp/reprise-embedded-XXXXXX";
    directory_ = ::mkdtemp(folder);
  }
  ~EmbeddedTest() override { fs::remove_all(directory_); }
  // A program that stands in for the daemon.
  std::string Script(const std::string& body) {
    std::string path = directory_ + "/daemon.sh";
    std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
    ::chmod(path.c_str(), 0755);
    return path;
  }
  Status Start(const std::string& daemon, uint32_t world = 1) {
    return StatusOf(
        EnsureEmbeddedDaemon({.directory = directory_, .daemon = daemon, .world = world},
                             Deadline::After(std::chrono::seconds(5))));
  }
  std::string directory_;
};

TEST_F(EmbeddedTest, ADaemonThatEndsAtOnceIsToldWithItsLastWords) {
  Status status = Start(Script("echo cannot open the journal >&2; exit 3"));
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("exit code 3"), std::string::npos) << status;
  EXPECT_NE(status.message().find("cannot open the journal"), std::string::npos) << status;
}

TEST_F(EmbeddedTest, TheDaemonInheritsNothingAndLeadsItsOwnSession) {
  Status status =
      Start(Script("ls /proc/self/fd | wc -w; ps -o sid= -p $$ | tr -d ' '; echo $$; "
                   "echo \"$@\"; exit 1"));
  std::ifstream log(directory_ + "/.reprise/daemon.log");
  int descriptors = 0;
  std::string session, process, arguments;
  log >> descriptors >> session >> process;
  std::getline(log >> std::ws, arguments);
  EXPECT_LE(descriptors, 4) << "0, 1, 2 and the one ls reads";
  EXPECT_EQ(session, process);
  EXPECT_EQ(arguments, "--role both --embedded " + directory_ + " --socket " + directory_ +
                           "/.reprise/node.sock");
}

TEST_F(EmbeddedTest, AMissingDaemonSaysHowToNameOne) {
  Status status = Start("/nowhere/reprised");
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_NE(status.message().find("/nowhere/reprised"), std::string::npos);
}

TEST_F(EmbeddedTest, AJobOverSeveralHostsIsSentToTheService) {
  Setting local("LOCAL_WORLD_SIZE", "4");
  Status status = Start("/bin/false", 8);
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_NE(status.message().find("reprise://"), std::string::npos);
  EXPECT_EQ(Start("/bin/false", 4).code(), Code::kUnavailable);
}

TEST_F(EmbeddedTest, ALongDirectoryGetsAShortSocketPath) {
  std::string deep = "/data/" + std::string(150, 'x');
  EXPECT_LT(EmbeddedSocketPath(deep).size(), 108u);
  EXPECT_NE(EmbeddedSocketPath(deep), EmbeddedSocketPath(deep + "y"));
  EXPECT_EQ(EmbeddedSocketPath("/data/job"), "/data/job/.reprise/node.sock");
}

TEST(Identity, UrisNameATenantAndAJobOrADirectory) {
  Target target = *ParseUri("reprise://team-a/llm-7b");
  EXPECT_FALSE(target.embedded);
  EXPECT_EQ(target.tenant, "team-a");
  EXPECT_EQ(target.job, "llm-7b");
  target = *ParseUri("file:///data/ckpts/llm-7b/");
  EXPECT_TRUE(target.embedded);
  EXPECT_EQ(target.directory, "/data/ckpts/llm-7b");
  EXPECT_EQ(target.job, "llm-7b");
  for (const char* bad : {"", "s3://bucket", "reprise://team", "reprise://a/b/c", "reprise:///b",
                          "reprise://../b", "file://relative/dir", "file:///data/.hidden"}) {
    EXPECT_EQ(StatusOf(ParseUri(bad)).code(), Code::kInvalidArgument) << bad;
  }
}

TEST(Identity, TheLauncherIsTheSameInAllRanksOfALaunch) {
  {
    Setting slurm("SLURM_JOB_ID", "77");
    Setting elastic("TORCHELASTIC_RUN_ID", "abc");
    EXPECT_EQ(MakeIdentity("", 0, 2).launcher, "slurm:77");
    EXPECT_EQ(MakeIdentity("mine", 0, 2).launcher, "mine");
  }
  Setting elastic("TORCHELASTIC_RUN_ID", "abc");
  EXPECT_EQ(MakeIdentity("", 0, 2).launcher, "torchelastic:abc");
  // torchrun's default names nothing.
  Setting none("TORCHELASTIC_RUN_ID", "none");
  EXPECT_EQ(MakeIdentity("", 0, 2).launcher, MakeIdentity("", 1, 2).launcher);
  EXPECT_NE(MakeIdentity("", 0, 2).process, MakeIdentity("", 0, 2).process);
}

// Ends the daemon that listens at `path`, a child of this process.
void EndDaemon(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(::connect(probe, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ucred peer{};
  socklen_t size = sizeof(peer);
  ASSERT_EQ(::getsockopt(probe, SOL_SOCKET, SO_PEERCRED, &peer, &size), 0);
  ::close(probe);
  ASSERT_EQ(::kill(peer.pid, SIGTERM), 0);
  int how = 0;
  ASSERT_EQ(::waitpid(peer.pid, &how, 0), peer.pid);
}

// With the real daemon, when this build has one beside the tests.
TEST_F(EmbeddedTest, AStateSurvivesItsProcessInARealDaemon) {
  fs::path daemon = fs::read_symlink("/proc/self/exe").parent_path() / ".." / "bin" / "reprised";
  if (!fs::exists(daemon)) GTEST_SKIP() << daemon << " is not built";
  fs::path job = fs::path(directory_) / "job";
  ClientOptions options;
  options.uri = "file://" + job.string();
  options.daemon = daemon.lexically_normal().string();
  options.launcher = "test";
  options.connect_timeout_s = 20;
  State state(1, {3'000'000, 17, 70'000});
  {
    auto client = Client::Open(options);
    ASSERT_TRUE(client.has_value()) << client.error();
    auto run = (*client)->Register(20);
    ASSERT_TRUE(run.has_value()) << run.error();
    EXPECT_FALSE(run->resume.has_value());
    auto ticket = (*client)->Snapshot(10, state.Pieces());
    ASSERT_TRUE(ticket.has_value()) << ticket.error();
    ASSERT_TRUE(ticket->Wait(Durability::kServer, 20).ok()) << ticket->progress().status;
    ASSERT_TRUE((*client)->Close(20).ok());
  }
  auto client = Client::Open(options);
  ASSERT_TRUE(client.has_value()) << client.error();
  auto run = (*client)->Register(20);
  ASSERT_TRUE(run.has_value()) << run.error();
  ASSERT_TRUE(run->resume.has_value());
  EXPECT_EQ(run->resume->step, 10u);
  State restored(2, {3'000'000, 17, 70'000});
  auto result = (*client)->Restore({.pieces = restored.Pieces(), .timeout_s = 20});
  ASSERT_TRUE(result.has_value()) << result.error();
  EXPECT_TRUE(restored.Equals(state));
  client->reset();
  EndDaemon(EmbeddedSocketPath(job.string()));
  // The slab outlives its daemon on purpose; its log says where it is.
  std::ifstream log(job / ".reprise" / "daemon.log");
  std::string text((std::istreambuf_iterator<char>(log)), std::istreambuf_iterator<char>());
  size_t at = text.find("/dev/shm/reprise-");
  if (at != std::string::npos) fs::remove_all(text.substr(at, text.find_first_of(" \n", at) - at));
}

}  // namespace
}  // namespace reprise::client::test
