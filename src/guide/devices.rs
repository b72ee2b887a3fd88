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
//! Tensors of *one* call must be on one device: the `like` of a [`recv`](crate::Communicator::recv) gives
//! the device of what is received, and the tensors of a [`sendrecv`](crate::Communicator::sendrecv) that
//! are on two are an [`Error::Device`](crate::Error::Device) that names both. What requires no memory, as
//! a token or a dummy, is on the device of the tensor that it comes from.
//!
//! # Staged: what is copied when
//!
//! MPI reads and writes host memory. So a tensor on a device is *staged*: copied to the host before the
//! call, and the result copied to the device after it. Device and host need not wait for each other more
//! than that, since a device does what it is given in the order of a *stream*, while the host goes on. A
//! copy is one more task of the stream that is current in the thread that calls:
//!
//! | | to the host | MPI | to the device |
//! | --- | --- | --- | --- |
//! | blocking call | behind what the stream was given so far; the call waits for this copy | in the call | put in the stream when the call returns, which does not wait for it |
//! | start of a call | put in the stream; the start does not wait for it | begins as soon as a call of this crate finds the copy done: the wait, a [`test`](crate::Request::test), any other start or wait | |
//! | its wait | | ends here | put in the stream when the wait returns |
//! | backward pass | as the operation that is the adjoint, blocking or started | likewise | likewise |
//! | forward mode | twice: the tensor, and its tangent | likewise | likewise |
//!
//! A started call on a device, from the left to the right:
//!
#![doc = include_str!("pictures/staging.svg")]
//!
//! So MPI reads nothing that the device has not finished, and kernels that the program puts in the stream
//! after the call see the result, without a synchronization by hand. What the device does meanwhile, and
//! what the host does meanwhile, both overlap with the message.
//!
//! **Streams.** The stream that is current where a call is made is the one that counts. A program that
//! computes its tensor on another stream makes the current one wait for it, as it would before any
//! operation of torch. In a backward pass libtorch makes current the stream that was current in the forward
//! pass. tch has no streams of its own: every thread uses the default one, and there is nothing to do.
//!
//! **Memory on the host** is pinned, so that copies run beside the host at full speed. It comes from
//! libtorch's own allocator, which keeps it for the next call: no call pins memory anew once the program
//! has made one of that size. It is one buffer for what a rank sends, and one for what it receives. A started
//! call has its own until its wait has returned and the copy back is done.
//!
//! **Dense and contiguous** is what MPI gets: a view that is neither, such as a transposed matrix, is
//! packed on the device, and only its elements are copied.
//!
//! # Direct: MPI reads the memory of the device
//!
//! Some MPIs are built to take addresses in a GPU's memory. They move data from GPU to GPU, or from
//! the GPU to the network, and no copy is left to this crate. It uses that if MPI says that it can, which
//! [`initialize`](crate::initialize) asks:
//!
//! | MPI | asked by | what it takes |
//! | --- | --- | --- |
//! | Open MPI | `MPIX_Query_cuda_support` | built with `--with-cuda`; in most clusters' modules, in no Linux distribution's package and not in the wheel of the Python registry |
//! | MPICH, MVAPICH, Cray MPICH | `MPIX_GPU_query_support` | built with `--with-cuda`, `--with-hip` or `--with-ze`, and started with `MPIR_CVAR_ENABLE_GPU=1`; Cray's with `MPICH_GPU_SUPPORT_ENABLED=1` |
//! | Intel MPI | `MPIX_GPU_query_support` | `I_MPI_OFFLOAD=1`; for NVIDIA's GPUs also `I_MPI_OFFLOAD_MODE=cuda` |
//!
//! A function that the MPI of the build does not have cannot be asked, and then every call is staged.
//! `MPI4TCH_DEVICE` says which way to go:
//!
//! | `MPI4TCH_DEVICE` | |
//! | --- | --- |
//! | not set | direct where MPI says that it can take the memory of this kind of device, else staged |
//! | `staged` | staged |
//! | `direct` | direct; where MPI says that it cannot, [`initialize`](crate::initialize) returns an error |
//!
//! A direct call waits before MPI is called until the stream has done what it was given, because MPI knows
//! nothing of streams; the result is there when the call returns. Some calls are staged all the same:
//!
//! - reductions by ops that are functions of this crate, as they run on the host: those of `Half`,
//!   `BFloat16` and complex kinds, of `Bool`, and products;
//! - the sums of [`reduce_scatter`](crate::Communicator::reduce_scatter), for which blocks are added one
//!   after the other;
//! - [`halo_exchange`](crate::Cartesian::halo_exchange), whose faces are packed.
//!
//! # Ranks, devices, nodes
//!
//! **Which rank takes which device** is up to the program, and goes by its number among the ranks of its
//! node, as in the program above: [`split_shared`](crate::Communicator::split_shared) gives the ranks
//! that share memory, and `rank % Cuda::device_count()` spreads them over the node's devices. If the
//! launcher shows each rank one device only (Slurm's `--gpus-per-task=1`, or a `CUDA_VISIBLE_DEVICES` per
//! rank), the count is 1, and the same line is right.
//!
//! **One rank for each device** is what a program wants mostly. More of them work; each is a process
//! with a context of its own on the device, of some hundred MB, and with its own share of libtorch's cache
//! of the device's memory, which no other rank can use. Kernels of several processes take turns and do
//! not run at the same time, unless CUDA's
//! [MPS](https://docs.nvidia.com/deploy/mps/index.html) runs (`nvidia-cuda-mps-control -d`, before the
//! ranks start). With the compute mode `EXCLUSIVE_PROCESS` a device takes a second rank by MPS only.
//!
//! **Threads.** libtorch runs the part of a backward pass that is on a device in a thread of its own, one
//! for each device, and so the adjoints of calls on tensors of that device are calls of MPI on that thread.
//! That needs [`ThreadLevel::Serialized`](crate::ThreadLevel::Serialized), which
//! [`initialize`](crate::initialize) asks for. Where MPI was started with less by another library, the
//! call returns an [`Error::Thread`](crate::Error::Thread) out of the backward pass.
//!
//! **Order.** With tensors on the CPU and on a device, or on two devices, the threads of a backward pass
//! have a queue each, and nothing orders the calls of one after those of the other: on one rank this one is
//! ready first, on another rank that one, and they wait for each other. A [`Tape`](crate::Tape) orders
//! them. Its token leads from each call to the one before, whichever thread runs it:
//!
#![doc = include_str!("pictures/queues.svg")]
//!
//! If all tensors that a program communicates are on one device, one thread makes all calls, and a tape is
//! needed [when it is on the CPU](super#when-no-tape-is-needed).
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
// FIGURES: what was run on a real GPU, and the figures of `cargo bench --bench device` there, are to be
// filled in here, in place of the next paragraph.
//! On a real GPU, none of this has been run yet. ROCm and XPU have not been tried at all.
