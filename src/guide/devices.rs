//! On GPUs and other devices: how a tensor in a device's memory is sent, what is copied when, and what to
//! know where ranks share devices.
//!
//! Every operation takes tensors of any device that libtorch has streams, events and pinned memory for:
//! CUDA, ROCm, XPU. Nothing is chosen in the program, and no call is written differently. A result is on
//! the device of its input, and so are gradients, tangents and what is saved for the backward pass. Ranks
//! may use different devices, one a GPU and another the CPU.
//!
//! ```
#![doc = include_str!("devices/program.rs")]
//! ```
//!
//! The tensors of *one* call must be on one device: with an `x` and a `like` on two, a
//! [`sendrecv`](crate::Communicator::sendrecv) is an error that names both. The `like` of a
//! [`recv`](crate::Communicator::recv) says on which device the message is wanted. A tensor that has no
//! memory, on the device `meta`, is an [`Error::Device`](crate::Error::Device).
//!
//! # Staged: what is copied when
//!
//! MPI reads and writes host memory. So a tensor on a device is *staged*: it is copied to the host before
//! the call, and the result is copied to the device after it. A device does what it is given in the order
//! of a *stream*, while the host goes on, and these copies are two more tasks of the stream that is
//! current on the calling thread:
//!
//! | | to the host | MPI | to the device |
//! | --- | --- | --- | --- |
//! | blocking call | put in the stream; the call waits until it is done | in the call | put in the stream; the call returns at once |
//! | start | put in the stream; the start returns at once | begins as soon as the copy is done and the crate sees it: in the wait, in a [`test`](crate::Request::test), or in any other start or wait | |
//! | wait | | ends here | put in the stream; the wait returns at once |
//! | backward pass | as in the adjoint, which is a blocking call or a started one | | |
//!
//! A started call on a device, from the left to the right:
//!
#![doc = include_str!("pictures/staging.svg")]
//!
//! So MPI reads nothing that the device has not finished, and kernels that the program puts in the stream
//! after the call see the result, without a synchronization by hand. The message is on its way while the
//! host and the device both do other work. The start itself waits for the copy if the program may call MPI
//! without this crate, that is, with the feature `rsmpi`, or if MPI was initialized by another library, and
//! with `MPI4TCH_CHECK=none`.
//!
//! **Large tensors** go in pieces of 4 MiB in blocking collectives: while MPI is at work on one, the next is
//! on its way to the host, and the last on its way back. If ranks send or receive a block for each other, a
//! piece has a share of each block; with more than 64 ranks it is larger, so that the mean share stays at
//! 64 KiB. All ranks cut alike, those whose tensors are on the host too, which they agree on with the call.
//! So calls that the ranks do not agree on are made at once, as most are with `MPI4TCH_CHECK=none`, and so are
//!
//! - a `reduce_scatter` that is left to MPI's function, as by another op than a sum: that takes blocks only
//!   one after another;
//! - calls with blocks if no rank stages its tensors, since its MPI takes pointers (see below);
//! - the sums of [`DataParallel`](crate::DataParallel), which are small, and follow each other;
//! - started calls, whose copies and messages overlap with the program;
//! - messages, as they may be probed for their length.
//!
//! **Streams.** The stream that is current where the call is made, or where the wait is, is the one that
//! counts. A program that has computed its tensor on another stream makes the current one wait for that,
//! as it would before any operation of torch. In a backward pass libtorch makes the stream current that was
//! so in the forward pass. tch has no streams: all threads use the default one, and there is nothing to do.
//!
//! **Memory on the host** is pinned, so that the device copies while the host goes on. It is as large as
//! what the rank sends and what it receives. It comes from libtorch's own allocator, which keeps it for
//! the next call of that size.
//!
//! **Views.** Elements that are not contiguous, as those of a transposed matrix, are packed on the device,
//! and so are blocks along an axis other than the first. Only what is sent is copied.
//!
//! **Halos and neighbours.** A [`halo_exchange`](crate::Cartesian::halo_exchange) copies the ghosts to the
//! host and back, and not the field: of 1000³ doubles, with one ghost on each side, 48 MB each way instead of
//! 8 GB. The faces are packed on the device and copied to the host together; what comes is copied to the
//! device together, and unpacked there, or added in the adjoint. The block itself is copied on the device
//! only, while the messages are under way. The same holds for
//! [`neighbor_all_gather`](crate::Graph::neighbor_all_gather) and
//! [`neighbor_all_to_all`](crate::Graph::neighbor_all_to_all). A blocking `halo_exchange` goes axis by axis,
//! and each axis waits for the device once. [`ihalo_exchange`](crate::Cartesian::ihalo_exchange) waits once
//! for all. From the start to the end of an exchange, its messages also take memory on the device, as much as
//! on the host; only faces that are contiguous need none.
//!
//! # Direct: MPI reads the memory of the device
//!
//! Some MPIs are built to take pointers to the memory of a GPU. They move data from GPU to GPU, or from
//! the GPU to the network, and this crate copies nothing. [`initialize`](crate::initialize) asks MPI
//! whether it does:
//!
//! | MPI | asked by | what it takes |
//! | --- | --- | --- |
//! | Open MPI | `MPIX_Query_cuda_support`, `MPIX_Query_rocm_support` | `--with-cuda` or `--with-rocm` when it is built, as in the modules of clusters (*site*). Debian's package and the wheel of the Python registry are built without |
//! | MPICH and its derivatives | `MPIX_GPU_query_support` | `--with-cuda`, `--with-hip` or `--with-ze` when it is built, and `MPIR_CVAR_ENABLE_GPU=1`, or for Cray's `MPICH_GPU_SUPPORT_ENABLED=1`, when it runs. Again, not the package and not the wheel |
//! | Intel MPI | `MPIX_GPU_query_support` | `I_MPI_OFFLOAD=1` when it runs, for NVIDIA's GPUs with `I_MPI_OFFLOAD_MODE=cuda` |
//!
//! Where the functions are missing, as with the feature `abi`, MPI cannot be asked, and every call is
//! staged. `MPI4TCH_DEVICE` says which way to go:
//!
//! | `MPI4TCH_DEVICE` | |
//! | --- | --- |
//! | not set | direct if MPI says that it takes pointers to the memory of such devices, else staged |
//! | `staged` | staged |
//! | `direct` | direct; if MPI does not say that it takes pointers to some kind of devices, [`initialize`](crate::initialize) returns an error. Tensors on devices of another kind are staged |
//!
//! MPI knows nothing of streams. So before it is called, a direct call waits until the stream has done what
//! it was given so far, and when it returns, the result is there. A started one is handed to MPI when that
//! has been done. Ranks may differ: one stages what the other sends from its device. Some calls are
//! staged all the same:
//!
//! - reductions by ops that are functions of this crate, which run on the host: products, and those of
//!   `Half`, `BFloat16`, `Bool` and complex tensors;
//! - the sums of [`reduce_scatter`](crate::Communicator::reduce_scatter), and the messages of
//!   [`halo_exchange`](crate::Cartesian::halo_exchange) and of the exchanges between neighbours;
//! - messages that carry more than their elements, as with `MPI4TCH_CHECK=collective`, the default in debug
//!   builds;
//! - with Open MPI, started collective calls, as it reads the device's memory on the host in them
//!   ([ompi #9845](https://github.com/open-mpi/ompi/issues/9845)), and blocking ones that this crate makes as
//!   started ones, because the program calls MPI on several threads; and all that is received, as it writes
//!   beyond a buffer that is too short.
//!
//! # Ranks, devices, nodes
//!
//! **Which rank takes which device** is up to the program, and goes by its number among the ranks of its
//! node, as in the program above: [`split_shared`](crate::Communicator::split_shared) gives the ranks
//! that share memory, and `rank % Cuda::device_count()` spreads them over the node's devices. If the
//! launcher shows each rank one device only (Slurm's `--gpus-per-task=1`, or a `CUDA_VISIBLE_DEVICES` per
//! rank), the count is 1, and the same line is right.
//!
//! **One rank for each device** is what most programs want. Several ranks on one work too. Each is a
//! process with a context of its own on the device, of some hundred MB, and what libtorch keeps of the
//! device's memory for one rank is of no use to another. Kernels of several processes take turns, unless
//! CUDA's [MPS](https://docs.nvidia.com/deploy/mps/index.html) runs on the node
//! (`nvidia-cuda-mps-control -d`, before the ranks start). A device in the compute mode
//! `EXCLUSIVE_PROCESS` takes a second rank only under MPS.
//!
//! **Threads.** In a backward pass, libtorch runs the pullbacks of a device on a thread of its own, one
//! for each device, so that adjoints of calls on that device's tensors call MPI from there.
//! That needs [`ThreadLevel::Serialized`](crate::ThreadLevel::Serialized), which
//! [`initialize`](crate::initialize) asks for. If another library has initialized MPI with less, the
//! backward pass returns an [`Error::Thread`](crate::Error::Thread). At that level one thread at a
//! time is in MPI, and no thread may keep another from it. So while a program calls MPI on several threads,
//! blocking collectives are made as started ones and polled for; they do not go in pieces then, and Open MPI
//! gets no pointers in them. The thread of a device counts as another one, unless the main thread has begun
//! the pass by a [`Tape`](crate::Tape) or by [`DataParallel`](crate::DataParallel), and no other device, nor
//! the host, has had adjoints so far: then the main thread waits for it, and calls are made as they are.
//! `Tensor::backward` of tch is not known to this crate.
//! [`initialize_with(ThreadLevel::Multiple)`](crate::initialize_with) needs no polling.
//!
//! **Order.** If a program communicates tensors on the CPU and on a device, or on two devices, its
//! backward pass runs on several threads, each with a queue of its own. On one rank a call of one thread may
//! be ready first, on another rank a call of the other thread, and they wait for each other for ever. On a
//! [`Tape`](crate::Tape) the token leads from each call to the one before, whichever thread runs it, so
//! that the order is the same on all ranks:
//!
#![doc = include_str!("pictures/queues.svg")]
//!
//! If all tensors that a program communicates are on one device, one thread makes all calls of the
//! backward pass, and a tape is needed in the same cases [as on the CPU](super#when-no-tape-is-needed).
//!
//! # Building
//!
//! This crate is the same for all devices, and needs no CUDA to compile. A libtorch for CUDA is needed,
//! of the same version as any other ([which](crate#versions)); it is one of:
//!
//! - `eval "$(scripts/setup.sh --cuda)"`: the wheels of the Python registry for Linux, 3.8 GB in the cache
//!   folder, and `LIBTORCH` is set;
//! - `LIBTORCH_USE_PYTORCH=1`: a PyTorch that `pip install torch==2.11.0` brought, which is for CUDA on
//!   Linux;
//! - `LIBTORCH=<folder>`: `libtorch-shared-with-deps` for CUDA from pytorch.org, unpacked.
//!
//! The driver is the system's, and must be new enough for that CUDA: 580 for CUDA 13.
//!
//! **A program must be linked to libtorch's part for CUDA**, to which nothing in it refers, so that the
//! linker leaves it out; then `tch::Cuda::is_available()` is false on any machine
//! ([tch-rs #980](https://github.com/LaurentMazare/tch-rs/issues/980)). In the program's `build.rs`:
//!
//! ```no_run
//! println!("cargo::rustc-link-arg=-Wl,--no-as-needed,-ltorch,--as-needed");
//! ```
//!
//! That holds for every libtorch: `libtorch.so` names the parts that it has. A program without that line,
//! or one that was built with a libtorch for CPUs, computes on GPUs all the same if it is started with a
//! libtorch for CUDA *of the same version*, and the loader is told to load that part:
//!
//! ```sh
//! export LD_LIBRARY_PATH=/path/to/libtorch-cuda/lib
//! mpiexec -n 2 -x LD_PRELOAD=libtorch_cuda.so my-program              # Open MPI
//! mpiexec -n 2 -genv LD_PRELOAD libtorch_cuda.so my-program           # MPICH, Intel MPI
//! ```
//!
//! # What was tried
//!
//! The tests run on a device that they register with libtorch themselves, a stand-in for a GPU: memory
//! that the host must not touch, and a queue that works later, on a thread of its own. So a missing
//! synchronization is a wrong result on every machine. `MPI4TCH_TEST_DEVICE=stand-in cargo test` runs
//! them so. On a machine with an NVIDIA GPU, `make test-cuda` runs them with CUDA tensors; ranks share
//! devices if there are fewer. `cargo bench --bench device` times staged and direct calls.
//!
//! On a real GPU, one NVIDIA H200 (CUDA 13.0, libtorch 2.11.0) that 3 ranks share, all passed that was run:
//! staged, with Open MPI 4.1.4, the files of collectives, messages, requests, tapes, `DataParallel`, halos,
//! neighbours, checkpoints, operations in place and `Replicated`; direct, those of collectives, messages and
//! requests with an Open MPI 4.1.4 that was built for CUDA and with Intel MPI 2021.19
//! (`I_MPI_OFFLOAD=1 I_MPI_OFFLOAD_MODE=cuda`), with the former those of tapes, too. Not tried: several GPUs,
//! several nodes, MPICH with a GPU, ROCm and XPU.
//!
//! `cargo bench --bench device` there, with 2 ranks that share the GPU and Open MPI 4.1.4, in microseconds:
//!
//! | bytes | one copy to the host, and back | `all_reduce` on the host | staged | `sendrecv` on the host | staged |
//! | ---: | ---: | ---: | ---: | ---: | ---: |
//! | 8 | 11, 274 | 4 | 310 | 4 | 280 |
//! | 128 Ki | 14, 17 | 44 | 92 | 33 | 79 |
//! | 1 Mi | 44, 46 | 312 | 515 | 235 | 381 |
//! | 16 Mi | 618, 619 | 7 376 | 7 992 | 4 586 | 5 420 |
//! | 256 Mi | 9 751, 9 740 | 233 502 | 126 909 | 73 778 | 92 121 |
//!
//! The copy of a few bytes to the device takes 270 µs where two processes share it, as they take turns. The
//! largest `all_reduce` is faster staged than on the host because it goes in pieces. A `halo_exchange` of
//! one cell around a block of n² doubles:
//!
//! | n | on the host | one copy of the block to the host, and back | on the device |
//! | ---: | ---: | ---: | ---: |
//! | 64 | 15 | 10, 12 | 616 |
//! | 512 | 223 | 82, 83 | 887 |
//! | 2048 | 6 308 | 1 234, 1 225 | 984 |
//! | 8192 | 186 134 | 19 486, 19 457 | 1 540 |
