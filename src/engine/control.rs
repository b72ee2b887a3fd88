//! Communication between the ranks for the crate's own purposes, in the control context.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use tch::Tensor;

use crate::base::error::{Error, Result};
use crate::base::rank::index;
use crate::base::site::Site;
use crate::base::way::Way;
use crate::call::buffer::Input;
use crate::call::{Call, Exchange, Finish, Made, Plan, mpi};
use crate::engine::communicator::Communicator;

impl Communicator {
    /// Gathers every rank's `words`, in order of the ranks. Collective; all ranks are in the same
    /// call, and make it in the same way.
    pub(crate) fn all_gather_control<const N: usize>(
        &self,
        site: Site,
        way: Way,
        words: &[i64; N],
    ) -> Result<Vec<[i64; N]>> {
        let count = i32::try_from(N).unwrap_or(i32::MAX);
        let memory = (Box::new(*words), vec![[0; N]; index(self.size())]);
        let (_, all) = self.on_control(site, way, memory, |(words, all), made| {
            mpi!(
                made,
                MPI_Allgather
                    | MPI_Iallgather(
                        words.as_ptr().cast(),
                        count,
                        mpi_sys::MPI_INT64_T,
                        all.as_mut_ptr().cast(),
                        count,
                        mpi_sys::MPI_INT64_T,
                        self.control(),
                    )
            )
        })?;
        Ok(all)
    }

    /// Sends one of the `words` to each rank. Returns the words received, in order of the ranks.
    /// Collective; all ranks are in the same call, and make it in the same way.
    pub(crate) fn all_to_all_control(
        &self,
        site: Site,
        way: Way,
        words: Vec<i64>,
    ) -> Result<Vec<i64>> {
        assert_eq!(words.len(), index(self.size()), "a word for each rank");
        let memory = (vec![0; words.len()], words);
        let (all, _) = self.on_control(site, way, memory, |(all, words), made| {
            mpi!(
                made,
                MPI_Alltoall
                    | MPI_Ialltoall(
                        words.as_ptr().cast(),
                        1,
                        mpi_sys::MPI_INT64_T,
                        all.as_mut_ptr().cast(),
                        1,
                        mpi_sys::MPI_INT64_T,
                        self.control(),
                    )
            )
        })?;
        Ok(all)
    }

    /// Carries out an exchange whose regions are of as many words as are given, and returns those that
    /// come. All ranks are in the same call.
    pub(crate) fn exchange_control(
        &self,
        site: Site,
        exchange: &Arc<Exchange>,
        words: &[i64],
    ) -> Result<Vec<i64>> {
        let count = i64::try_from(words.len()).unwrap_or(i64::MAX);
        let words = Tensor::f_from_slice(words)?;
        let plan = Plan {
            input: Input::new(site.call, &words)?,
            shape: vec![count].into(),
            call: Call::Exchange(Arc::clone(exchange)),
            context: self.exchanges(),
            finish: Finish::Nothing,
        };
        let made = Made::new(Way::Polls);
        Ok(plan.run(site, self.handle(), made, || ())?.try_into()?)
    }

    /// The bits that are set on every rank. Collective; all ranks are in the same call, and make it
    /// in the same way.
    pub(crate) fn intersect_control(
        &self,
        site: Site,
        way: Way,
        bits: Vec<u64>,
    ) -> Result<Vec<u64>> {
        let count = i32::try_from(bits.len()).map_err(|_| Error::Exchange { call: site.call })?;
        self.on_control(site, way, bits, |bits, made| {
            mpi!(
                made,
                MPI_Allreduce
                    | MPI_Iallreduce(
                        mpi_sys::MPI_IN_PLACE,
                        bits.as_mut_ptr().cast(),
                        count,
                        mpi_sys::MPI_UINT64_T,
                        mpi_sys::MPI_BAND,
                        self.control(),
                    )
            )
        })
    }

    /// The sums of all ranks' words, with wrapping. Collective; all ranks are in the same call, and
    /// make it in the same way.
    pub(crate) fn sum_control<const N: usize>(
        &self,
        site: Site,
        way: Way,
        words: [i64; N],
    ) -> Result<[i64; N]> {
        let count = i32::try_from(N).unwrap_or(i32::MAX);
        // Unsigned, as overflow is then defined in C, too.
        let memory = Box::new(words.map(i64::cast_unsigned));
        let sums = self.on_control(site, way, memory, |words, made| {
            mpi!(
                made,
                MPI_Allreduce
                    | MPI_Iallreduce(
                        mpi_sys::MPI_IN_PLACE,
                        words.as_mut_ptr().cast(),
                        count,
                        mpi_sys::MPI_UINT64_T,
                        mpi_sys::MPI_SUM,
                        self.control(),
                    )
            )
        })?;
        Ok(sums.map(u64::cast_signed))
    }

    /// Whether the word, a hash, is equal on all ranks. Collective; all ranks are in the same call,
    /// and make it in the same way.
    pub(crate) fn is_equal_on_all(&self, site: Site, way: Way, word: u64) -> Result<bool> {
        // Equal hashes cancel, and those of only some ranks do not, except by chance.
        let weight = if self.rank() == 0 { 1 - i64::from(self.size()) } else { 1 };
        let [sum] = self.sum_control(site, way, [word.cast_signed().wrapping_mul(weight)])?;
        Ok(sum == 0)
    }

    /// Gathers every rank's `bytes`, in order of the ranks. They may differ in length. Collective;
    /// all ranks are in the same call.
    pub(crate) fn exchange(&self, site: Site, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // A length of −1 tells every rank that this one has more bytes than an int counts.
        let length = i64::try_from(bytes.len()).ok().filter(|&length| length <= i32::MAX.into());
        let lengths = self.all_gather_control(site, Way::Polls, &[length.unwrap_or(-1)])?;
        let too_much = || Error::Exchange { call: site.call };
        let (mut counts, mut displacements, mut total) = (Vec::new(), Vec::new(), 0_i32);
        for [length] in lengths {
            let count = i32::try_from(length).ok().filter(|&count| count >= 0);
            counts.push(count.ok_or_else(too_much)?);
            displacements.push(total);
            total = total.checked_add(counts[counts.len() - 1]).ok_or_else(too_much)?;
        }
        // One byte more for each list: the pointer of an empty one can be the value of
        // MPI_IN_PLACE.
        let own = [bytes, &[0]].concat();
        let all = vec![0_u8; total.unsigned_abs() as usize + 1];
        let memory = (own, all, counts, displacements);
        let (_, all, counts, _) = self.on_control(
            site,
            Way::Polls,
            memory,
            |(own, all, counts, displacements), made| {
                mpi!(
                    made,
                    MPI_Allgatherv
                        | MPI_Iallgatherv(
                            own.as_ptr().cast(),
                            counts[index(self.rank())],
                            mpi_sys::MPI_BYTE,
                            all.as_mut_ptr().cast(),
                            counts.as_ptr(),
                            displacements.as_ptr(),
                            mpi_sys::MPI_BYTE,
                            self.control(),
                        )
                )
            },
        )?;
        let mut rest = all.as_slice();
        Ok(counts
            .iter()
            .map(|count| {
                let (head, tail) = rest.split_at(count.unsigned_abs() as usize);
                rest = tail;
                head.to_vec()
            })
            .collect())
    }

    /// Makes a call that reads and writes `memory`, waits for its end, and returns the memory.
    fn on_control<M>(
        &self,
        site: Site,
        way: Way,
        memory: M,
        call: impl FnOnce(&mut M, &mut Made) -> Result<()>,
    ) -> Result<M> {
        let environment = self.environment();
        // If the wait fails, MPI may still use the memory, which is then leaked.
        let mut memory = ManuallyDrop::new(memory);
        let mut made = Made::new(way);
        environment.call(site, || call(&mut memory, &mut made))?;
        if !made.has_ended() {
            environment.wait_until(site, || {
                // SAFETY: `wait` gives permission to call MPI; the memory is kept to the end.
                unsafe { made.test() }
            })?;
        }
        Ok(ManuallyDrop::into_inner(memory))
    }
}
